// The data sets that a command line can name.
#pragma once

#include <string>

#include "runtime/data/dataset.h"

namespace thinwire {

// `spec` is one of
//   fashion-mnist         as Debian's package dataset-fashion-mnist installs it
//   fashion-mnist:PATH    the same four files in the folder PATH
//   text[:PATH][,context=128]
//                         any text file, plain or gzip, read byte by byte; without PATH the Jargon
//                         File of Debian's package jargon-text. PATH has no part like ",word="; one
//                         that begins like "word=" is written "./word=..."
//   synthetic[:samples=4096,test_samples=1024,classes=10,channels=1,size=28,noise=1.0,seed=1]
// Throws UsageError where it is none of them, DataError or IoError where files are not as they
// should be.
DataSplit load_data(const std::string& spec);

}  // namespace thinwire
