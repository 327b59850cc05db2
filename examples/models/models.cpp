#include "examples/models/models.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <functional>
#include <memory>
#include <numeric>
#include <utility>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/memory.h"
#include "examples/models/gpt.h"
#include "examples/models/networks.h"

namespace thinwire {
namespace {

using Shape = std::vector<std::int64_t>;

template <typename Network, typename... Arguments>
Model wrap(const Arguments&... arguments) {
  auto network = std::make_shared<Network>(arguments...);
  return {network, [network](const at::Tensor& input) { return network->forward(input); }};
}

// Of a model's parameters and their gradients.
void require_memory_for(const std::string& model, double parameters) {
  require_memory("--model " + model, 2 * sizeof(float) * parameters);
}

double mlp_parameters(std::int64_t inputs, const Shape& hidden, std::int64_t classes) {
  double parameters = 0;
  std::int64_t before = inputs;
  const auto add_layer = [&](std::int64_t outputs) {
    parameters += (static_cast<double>(before) + 1) * static_cast<double>(outputs);
    before = outputs;
  };
  for (const std::int64_t width : hidden) add_layer(width);
  add_layer(classes);
  return parameters;
}

// Without the biases and norms.
double gpt_parameters(const GptOptions& options) {
  const auto width = static_cast<double>(options.width);
  return width * (12 * width * static_cast<double>(options.layers) +
                  static_cast<double>(options.vocabulary + options.context));
}

void require_image(const std::string& model, const Shape& shape, std::int64_t smallest) {
  if (shape.size() == 3 && shape[1] >= smallest && shape[2] >= smallest) return;
  throw UsageError(fmt::format(
      "--model {} cannot take samples of shape [{}]: it needs [channels, height, width], at least "
      "{} pixels each way; choose other data, or mlp, which takes any",
      model, fmt::join(shape, ", "), smallest));
}

Model make_gpt(ChoiceReader spec, const Shape& sample_shape, std::int64_t vocabulary) {
  GptOptions options;
  options.layers = spec.integer("layers", options.layers, 1, 1000);
  options.heads = spec.integer("heads", options.heads, 1, 1000);
  options.width = spec.integer("width", options.width, 1, 1 << 16);
  options.dropout = spec.number("dropout", options.dropout, 0, 0.99);
  spec.done();
  if (options.width % options.heads != 0) {
    throw UsageError(fmt::format(
        "--model gpt has a width of {} and {} heads; give a width that is a multiple of "
        "the heads",
        options.width, options.heads));
  }
  if (sample_shape.size() != 1) {
    throw UsageError(fmt::format(
        "--model gpt cannot take samples of shape [{}]: it learns text; give --data text or "
        "--data text:PATH",
        fmt::join(sample_shape, ", ")));
  }
  options.vocabulary = vocabulary;
  options.context = sample_shape[0];
  require_memory_for("gpt", gpt_parameters(options));
  return wrap<Gpt>(options);
}

}  // namespace

Model make_model(const std::string& spec_text, const Shape& sample_shape, std::int64_t classes) {
  ChoiceReader spec("--model", spec_text);
  const std::string& name = spec.name();
  if (name == "mlp") {
    const Shape hidden = spec.integers("hidden", {256}, 1, 1 << 20);
    spec.done();
    const std::int64_t inputs = std::accumulate(sample_shape.begin(), sample_shape.end(),
                                                std::int64_t{1}, std::multiplies<>());
    require_memory_for(name, mlp_parameters(inputs, hidden, classes));
    return wrap<Mlp>(inputs, hidden, classes);
  }
  if (name == "convnet") {
    spec.done();
    require_image(name, sample_shape, 4);
    return wrap<ConvNet>(sample_shape[0], sample_shape[1], sample_shape[2], classes);
  }
  if (name == "resnet8") {
    spec.done();
    require_image(name, sample_shape, 1);
    return wrap<ResNet>(sample_shape[0], Shape{16, 32, 64}, std::int64_t{1}, classes);
  }
  if (name == "resnet18") {
    spec.done();
    require_image(name, sample_shape, 1);
    return wrap<ResNet>(sample_shape[0], Shape{64, 128, 256, 512}, std::int64_t{2}, classes);
  }
  if (name == "gpt") return make_gpt(std::move(spec), sample_shape, classes);
  spec.unknown_name({"mlp", "convnet", "resnet8", "resnet18", "gpt"});
}

Model make_model(const std::string& spec, const Dataset& data) {
  Model model = make_model(spec, data.sample_shape(), data.classes());
  const bool answers_many = dynamic_cast<const Gpt*>(model.module.get()) != nullptr;
  if (answers_many != (data.targets_per_sample() > 1)) {
    throw UsageError(fmt::format(
        "--model {} cannot learn these data: it gives {} to a sample, they ask for {}; text goes "
        "with gpt, images with the others",
        spec, answers_many ? "many answers" : "one answer", data.targets_per_sample()));
  }
  return model;
}

}  // namespace thinwire
