#include "optimizers/groups.h"

#include <gtest/gtest.h>

namespace thinwire {
namespace {

const ParameterGroup defaults{.weight_decay = 0.5, .lr_scale = 1};

Slice slice(const std::string& name, std::vector<std::int64_t> shape) {
  return Slice{.name = name, .shape = std::move(shape)};
}

TEST(Groups, WithoutRulesEverythingHasTheDefaults) {
  const ParameterGroup group = resolve_group({}, slice("fc.bias", {3}), defaults);
  EXPECT_EQ(group.weight_decay, 0.5);
  EXPECT_EQ(group.lr_scale, 1);
}

TEST(Groups, NoDecayOnVectorsAndScalars) {
  const GroupRules rules = no_decay_on_vectors();
  EXPECT_EQ(resolve_group(rules, slice("fc.bias", {3}), defaults).weight_decay, 0);
  EXPECT_EQ(resolve_group(rules, slice("gain", {}), defaults).weight_decay, 0);
  EXPECT_EQ(resolve_group(rules, slice("fc.weight", {3, 1}), defaults).weight_decay, 0.5);
  EXPECT_EQ(resolve_group(rules, slice("conv.weight", {3, 1, 3, 3}), defaults).weight_decay, 0.5);
  EXPECT_EQ(resolve_group(rules, slice("fc.bias", {3}), defaults).lr_scale, 1);
}

TEST(Groups, PatternsMatchTheWholeName) {
  const GroupRules rules = {{.pattern = "layer[12].*.weight", .lr_scale = 0.25}};
  const auto scale = [&](const std::string& name) {
    return resolve_group(rules, slice(name, {2, 2}), defaults).lr_scale;
  };
  EXPECT_EQ(scale("layer1.conv.weight"), 0.25);
  EXPECT_EQ(scale("layer2.0.conv.weight"), 0.25);
  EXPECT_EQ(scale("layer3.conv.weight"), 1);
  EXPECT_EQ(scale("layer1.conv.weights"), 1);
  EXPECT_EQ(scale("my.layer1.conv.weight"), 1);
}

TEST(Groups, RanksAreTwoDimensionsApart) {
  const GroupRules rules = {{.rank = SliceRank::matrices, .lr_scale = 2}};
  EXPECT_EQ(resolve_group(rules, slice("a", {4}), defaults).lr_scale, 1);
  EXPECT_EQ(resolve_group(rules, slice("a", {2, 2}), defaults).lr_scale, 2);
}

TEST(Groups, LaterRulesOverrideFieldByField) {
  const GroupRules rules = {{.pattern = "a.*", .weight_decay = 0.1, .lr_scale = 3},
                            {.pattern = "a.b", .weight_decay = 0.2}};
  const ParameterGroup both = resolve_group(rules, slice("a.b", {1}), defaults);
  EXPECT_EQ(both.weight_decay, 0.2);
  EXPECT_EQ(both.lr_scale, 3);
  const ParameterGroup one = resolve_group(rules, slice("a.c", {1}), defaults);
  EXPECT_EQ(one.weight_decay, 0.1);
}

}  // namespace
}  // namespace thinwire
