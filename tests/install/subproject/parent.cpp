#include <collectives/base/choice_reader.h>

#include <cstdio>

int main() {
  const auto number = thinwire::parse_integer("the number", "42", 0, 100);
  std::printf("parsed %lld\n", static_cast<long long>(number));
}
