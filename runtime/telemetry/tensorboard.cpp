#include "runtime/telemetry/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <filesystem>

namespace thinwire {
namespace {

namespace fs = std::filesystem;

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

template <typename T>
std::string little_endian(T value) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof(T); ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  return bytes;
}

// CRC-32C (Castagnoli), least significant bit first.
std::uint32_t crc32c(std::string_view data) {
  static constexpr auto kTable = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t i = 0; i < table.size(); ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0x82f63b78u : 0u);
      table[i] = value;
    }
    return table;
  }();
  std::uint32_t crc = 0xffffffff;
  for (const char c : data) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<std::uint8_t>(c)) & 0xff];
  return ~crc;
}

// TFRecord masks checksums, since a record may itself hold data with checksums.
std::uint32_t masked_crc(std::string_view data) {
  return std::rotr(crc32c(data), 15) + 0xa282ead8u;
}

// Protocol buffers: a field is its number and wire type, then its value.
enum class Wire : std::uint32_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

std::string key(std::uint32_t number, Wire wire) {
  return varint(number << 3 | static_cast<std::uint32_t>(wire));
}

std::string bytes_field(std::uint32_t number, std::string_view bytes) {
  return (key(number, Wire::bytes) + varint(bytes.size())).append(bytes);
}

std::string integer_field(std::uint32_t number, std::int64_t value) {
  return key(number, Wire::varint) + varint(static_cast<std::uint64_t>(value));
}

// Field numbers of Event: wall_time 1, step 2, file_version 3, summary 5, session_log 7. A value of
// zero is left out, as protocol buffers do.
std::string event_head(double wall_time, std::int64_t step) {
  return key(1, Wire::fixed64) + little_endian(std::bit_cast<std::uint64_t>(wall_time)) +
         (step == 0 ? "" : integer_field(2, step));
}

}  // namespace

std::string scalar_event(double wall_time, std::int64_t step, std::span<const Scalar> scalars) {
  std::string summary;
  for (const Scalar& scalar : scalars) {
    const auto value = std::bit_cast<std::uint32_t>(static_cast<float>(scalar.value));
    summary +=
        bytes_field(1, bytes_field(1, scalar.tag) + key(2, Wire::fixed32) + little_endian(value));
  }
  return event_head(wall_time, step) + bytes_field(5, summary);
}

std::string start_event(double wall_time, std::int64_t step) {
  constexpr std::int64_t kStart = 1;  // of SessionLog.status, field 1
  return event_head(wall_time, step) + bytes_field(7, integer_field(1, kStart));
}

std::string version_event(double wall_time) {
  return event_head(wall_time, 0) + bytes_field(3, "brain.Event:2");
}

std::string record(std::string_view data) {
  const std::string length = little_endian(std::uint64_t{data.size()});
  return (length + little_endian(masked_crc(length))).append(data) +
         little_endian(masked_crc(data));
}

namespace {

// What a file begins with whose first event is of `step`.
std::string head(std::int64_t step) {
  return record(version_event(now())) + record(start_event(now(), step));
}

}  // namespace

TensorBoardFile::TensorBoardFile(const std::string& folder, std::int64_t resumed_at,
                                 std::function<void()> before_anew)
    : file_("TensorBoard events", "charts are missing", std::move(before_anew)) {
  std::error_code error;
  fs::create_directories(folder, error);
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  // TensorBoard reads the files of a folder in the order of their names; two may be of one second.
  int number = 0;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    ++number;
  }
  const std::string path = fmt::format("{}/events.out.tfevents.{:010.0f}.{}.{:04d}", folder,
                                       std::floor(now()), host.data(), number);
  file_.create(path);
  append(resumed_at + 1, {});
}

void TensorBoardFile::write(const StepReport& report) {
  const std::array<Scalar, 8> scalars{{{"loss", report.loss},
                                       {"lr", report.lr},
                                       {"samples_per_second", report.samples_per_second},
                                       {"bytes_dense", report.bytes_dense},
                                       {"bytes_wire", report.bytes_wire},
                                       {"residual_ratio", report.residual_ratio},
                                       {"skipped", static_cast<double>(report.skipped)},
                                       {"epoch", report.epoch}}};
  append(report.step, scalar_event(now(), report.step, scalars));
}

void TensorBoardFile::write(std::int64_t step, const Evaluation& evaluation) {
  const std::array<Scalar, 2> scalars{
      {{"test_accuracy", evaluation.accuracy}, {"test_loss", evaluation.loss}}};
  append(step, scalar_event(now(), step, scalars));
}

void TensorBoardFile::append(std::int64_t step, const std::string& event) {
  file_.append(event.empty() ? "" : record(event), [&] { return head(step); });
}

}  // namespace thinwire
