// Compression from words, and back.
#pragma once

#include <string>

#include "collectives/compression/options.h"

namespace thinwire {

// From words:
//   compressor  as `compressor_help` says
//   feedback    "auto", "none", "error_feedback", "econtrol:eta=auto|X,momentum=Y" and
//               "ef21:momentum=Y", with X from 0 to 1, Y from 0 to less than 1
//   exchange    "auto", "all_reduce", "two_stage", "all_gather"
// Throws `UsageError` for unknown words and combinations that do not make sense.
CompressionOptions parse_compression(const std::string& compressor, const std::string& feedback,
                                     const std::string& exchange = "auto");

// What may be written for a compressor: "none | fp16 | bf16 | sign[:block=N,scale=l1|rms] | ...".
std::string compressor_help();

// What may be written for exactly these options: "sign:block=1024,scale=l1".
std::string words_of(const CodecOptions& codec);

}  // namespace thinwire
