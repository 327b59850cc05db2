#include "runtime/watch/flight_recorder.h"

#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/threads/thread_communicator.h"

namespace thinwire {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

OperationRecord operation(std::int64_t sequence, const std::string& name) {
  OperationRecord record;
  record.name = name;
  record.sequence = sequence;
  record.bytes_logical = 4 * sequence;
  record.start = Clock::time_point(std::chrono::seconds(sequence));
  return record;
}

OperationRecord ended(OperationRecord record, std::int64_t bytes_sent) {
  record.bytes_sent = bytes_sent;
  record.end = record.start + std::chrono::milliseconds(500);
  return record;
}

TEST(FlightRecorder, KnowsWhatIsInFlight) {
  FlightRecorder recorder(2);
  EXPECT_EQ(describe(recorder.activity()), "starting");
  recorder.set_doing("computing");
  recorder.set_step(41);
  recorder.set_bucket(2);
  recorder.begun(operation(1, "all_to_all"));
  EXPECT_EQ(describe(recorder.activity()),
            "step 41, computing after all_to_all of bucket 2 (operation 1)");
  recorder.waiting(operation(1, "all_to_all"));
  EXPECT_THAT(describe(recorder.activity()),
              HasSubstr("s in all_to_all of bucket 2 (operation 1)"));
  recorder.ended(ended(operation(1, "all_to_all"), 7));
  recorder.set_bucket(std::nullopt);
  recorder.begun(operation(2, "barrier"));

  const json flight = json::parse(recorder.json("rank 3 died"));
  EXPECT_EQ(flight["rank"], 2);
  EXPECT_EQ(flight["reason"], "rank 3 died");
  EXPECT_EQ(flight["step"], 41);
  EXPECT_EQ(flight["doing"], "computing");
  EXPECT_EQ(flight["operations"],
            json::parse(R"([{"sequence": 1, "name": "all_to_all", "bytes": 4, "bytes_sent": 7,
                             "bucket": 2, "step": 41, "start": 1.0, "end": 1.5},
                            {"sequence": 2, "name": "barrier", "bytes": 8, "bytes_sent": 0,
                             "bucket": null, "step": 41, "start": 2.0, "end": null}])"));
}

TEST(FlightRecorder, KeepsTheLastThousand) {
  FlightRecorder recorder(0);
  for (std::int64_t i = 1; i <= 2500; ++i) {
    recorder.begun(operation(i, "barrier"));
    // The first one never ends, and is forgotten when its time comes.
    if (i > 1) recorder.ended(ended(operation(i, "barrier"), 0));
  }
  recorder.ended(ended(operation(1, "barrier"), 0));
  const json operations = json::parse(recorder.json(""))["operations"];
  ASSERT_EQ(operations.size(), 1000U);
  EXPECT_EQ(operations.front()["sequence"], 1501);
  EXPECT_EQ(operations.back()["sequence"], 2500);
  EXPECT_EQ(recorder.activity().operations, 2500);
}

TEST(FlightRecorder, DoingComesBack) {
  FlightRecorder recorder(0);
  recorder.set_doing("computing");
  {
    const Doing saving(&recorder, "writing a checkpoint");
    EXPECT_EQ(describe(recorder.activity()), "writing a checkpoint");
  }
  EXPECT_EQ(describe(recorder.activity()), "computing");
  const Doing nobody(nullptr, "nothing");
}

TEST(FlightRecorder, AnOperationThatFailsStaysInFlight) {
  FlightRecorder recorder(0);
  const auto meter = std::make_shared<Meter>(nullptr, &recorder);
  auto ranks = make_thread_group(2, {.timeout = std::chrono::milliseconds(50), .link = {}});
  const auto lonely = make_metered(std::move(ranks[0]), meter);
  const at::Tensor tensor = at::ones({3});
  EXPECT_THROW(lonely->all_reduce(tensor, ReduceOp::sum)->wait(), PeerLost);
  EXPECT_TRUE(recorder.activity().waiting.has_value());
  const json operations = json::parse(recorder.json(""))["operations"];
  ASSERT_EQ(operations.size(), 1U);
  EXPECT_EQ(operations[0]["name"], "all_reduce");
  EXPECT_EQ(operations[0]["bytes"], 12);
  EXPECT_TRUE(operations[0]["end"].is_null());
  EXPECT_GE(meter->waited(), 0.04);
}

TEST(Meter, CountsTheTimeOfWaitsAlone) {
  const auto meter = std::make_shared<Meter>();
  const auto alone = make_metered(std::move(make_thread_group(1)[0]), meter);
  auto work = alone->barrier();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(meter->waited(), 0);
  work->wait();
  EXPECT_LT(meter->waited(), meter->total().seconds);
  const double before = meter->waited();
  work->wait();  // again: nothing new
  EXPECT_EQ(meter->waited(), before);
  EXPECT_EQ(meter->total().calls, 1);
}

TEST(FlightRecorder, IsWrittenBesideTheCheckpoints) {
  std::string folder = std::filesystem::temp_directory_path() / "thinwire-flight-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  FlightRecorder recorder(3);
  PosixFileSystem files;
  write_flight(files, folder, 3, recorder, "why");
  EXPECT_EQ(json::parse(files.read_file(folder + "/flight/rank-3.json", 1 << 30))["reason"], "why");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace thinwire
