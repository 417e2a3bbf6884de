// Runs the compiled model of this folder with nothing but TVM's runtime.
//
//   cprune_runner [DIR] [--input FILE] [--output FILE] [--repeat N] [--threads N]
//
// DIR holds model.so, weights.safetensors and example.safetensors (default: the current folder).  Without --input
// the example goes in, and what comes out is compared with what PyTorch computed.  --input and --output are raw float32
// in the order of the model's inputs and outputs.  Exit code 0: it ran and agrees; 1: it disagrees; 2: it cannot run.

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

namespace {

constexpr DLDevice kCpu{kDLCPU, 0};
constexpr double kTolerance = 1e-3;
constexpr double kTolerance8 = 0.1;  // of a model in integers: values at a tie between two steps
constexpr int64_t kPooledAllocator = 2;

struct Aligned {
  void AllocData(DLTensor* tensor) {
    const size_t size = std::max<size_t>(ffi::GetDataSize(*tensor), 64);
    if (posix_memalign(&tensor->data, 64, (size + 63) / 64 * 64) != 0) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { free(tensor->data); }
};

ffi::Tensor Empty(const std::vector<int64_t>& shape, DLDataType type) {
  return ffi::Tensor::FromNDAlloc(Aligned(), ffi::ShapeView(shape.data(), shape.size()), type, kCpu);
}

std::vector<char> Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The numbers of `text` between `open` and `close`, from `from` on.
std::vector<int64_t> Numbers(const std::string& text, const std::string& open, char close, size_t from, size_t end) {
  const size_t start = text.find(open, from);
  const size_t stop = start == std::string::npos ? start : text.find(close, start + open.size());
  if (stop == std::string::npos || stop > end) throw std::runtime_error("damaged header");
  std::vector<int64_t> found;
  const char* at = text.c_str() + start + open.size();
  const char* last = text.c_str() + stop;
  while (at < last) {
    char* next = nullptr;
    found.push_back(std::strtoll(at, &next, 10));
    if (next == at) throw std::runtime_error("damaged header");
    at = next;
    while (at < last && (*at == ',' || *at == ' ')) ++at;
  }
  return found;
}

// What safetensors calls the types of weights.
const std::map<std::string, DLDataType> kTypes = {
    {"\"F32\"", {kDLFloat, 32, 1}}, {"\"I8\"", {kDLInt, 8, 1}}, {"\"U8\"", {kDLUInt, 8, 1}}};

// The tensors of a safetensors file by name, which is also their order.
std::map<std::string, ffi::Tensor> Tensors(const std::string& path) {
  const std::vector<char> bytes = Read(path);
  uint64_t size = 0;
  if (bytes.size() < 8) throw std::runtime_error(path + " is damaged");
  std::memcpy(&size, bytes.data(), 8);
  if (size > bytes.size() - 8) throw std::runtime_error(path + " is damaged");
  const std::string header(bytes.data() + 8, size);
  const size_t base = 8 + size;
  std::map<std::string, ffi::Tensor> found;
  size_t at = 0;
  while ((at = header.find('"', at)) != std::string::npos) {
    const size_t close = header.find('"', at + 1);
    const size_t end = header.find('}', at);
    if (close == std::string::npos || end == std::string::npos) throw std::runtime_error(path + " is damaged");
    const std::string name = header.substr(at + 1, close - at - 1);
    if (name != "__metadata__") {
      const auto type = std::find_if(kTypes.begin(), kTypes.end(),
                                     [&](const auto& each) { return header.find(each.first, close) < end; });
      if (type == kTypes.end()) throw std::runtime_error(path + ": " + name + " has a type that no weight has");
      const auto shape = Numbers(header, "\"shape\":[", ']', close, end);
      const auto span = Numbers(header, "\"data_offsets\":[", ']', close, end);
      ffi::Tensor tensor = Empty(shape, type->second);
      const size_t wanted = ffi::GetDataSize(tensor);
      if (span.size() != 2 || span[0] < 0 || span[1] < span[0] || base + span[1] > bytes.size() ||
          static_cast<size_t>(span[1] - span[0]) != wanted) {
        throw std::runtime_error(path + " is damaged at " + name);
      }
      std::memcpy(tensor.data_ptr(), bytes.data() + base + span[0], wanted);
      found.emplace(name, tensor);
    }
    at = end + 1;
  }
  return found;
}

class Model {
 public:
  explicit Model(const std::string& folder)
      : library_(ffi::Module::LoadFromFile(folder + "/model.so")),
        machine_(Get(library_, "vm_load_executable")().cast<ffi::Module>()) {
    Get(machine_, "vm_initialization")(static_cast<int64_t>(kDLCPU), static_cast<int64_t>(0), kPooledAllocator);
    main_ = Get(machine_, "main");
    for (const auto& entry : Tensors(folder + "/weights.safetensors")) weights_.push_back(entry.second);
  }

  double tolerance() const {
    const bool integers = std::any_of(weights_.begin(), weights_.end(),
                                      [](const ffi::Tensor& each) { return each.dtype().code == kDLInt; });
    return integers ? kTolerance8 : kTolerance;
  }

  std::vector<ffi::Tensor> operator()(const std::vector<ffi::Tensor>& inputs) const {
    std::vector<ffi::AnyView> args(inputs.begin(), inputs.end());
    args.insert(args.end(), weights_.begin(), weights_.end());
    ffi::Any result;
    main_.CallPacked(args.data(), static_cast<int32_t>(args.size()), &result);
    if (auto one = result.as<ffi::Tensor>()) return {*one};
    std::vector<ffi::Tensor> found;
    for (const ffi::Any& part : result.cast<ffi::Array<ffi::Any>>()) found.push_back(part.cast<ffi::Tensor>());
    return found;
  }

 private:
  static ffi::Function Get(const ffi::Module& from, const char* name) {
    auto found = from->GetFunction(name);
    if (!found.has_value()) throw std::runtime_error(std::string("model.so has no function ") + name);
    return *found;
  }

  ffi::Module library_;
  ffi::Module machine_;
  ffi::Function main_;
  std::vector<ffi::Tensor> weights_;
};

std::vector<ffi::Tensor> Named(const std::map<std::string, ffi::Tensor>& tensors, const std::string& prefix) {
  std::vector<ffi::Tensor> found;
  for (size_t i = 0;; ++i) {
    const auto entry = tensors.find(prefix + std::to_string(i));
    if (entry == tensors.end()) return found;
    found.push_back(entry->second);
  }
}

int Run(int argc, char** argv) {
  std::string folder = ".", input, output;
  int repeat = 20;
  std::string threads = std::to_string(CPRUNE_THREADS);
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= argc) throw std::runtime_error(word + " needs a value");
      return argv[++i];
    };
    if (word == "--input") {
      input = value();
    } else if (word == "--output") {
      output = value();
    } else if (word == "--repeat") {
      repeat = std::max(1, std::atoi(value().c_str()));
    } else if (word == "--threads") {
      threads = value();
    } else if (word.rfind("--", 0) == 0) {
      throw std::runtime_error("unknown option " + word);
    } else {
      folder = word;
    }
  }
  setenv("TVM_NUM_THREADS", threads.c_str(), 0);  // before the runtime starts its threads

  const auto example = Tensors(folder + "/example.safetensors");
  std::vector<ffi::Tensor> inputs = Named(example, "input.");
  const std::vector<ffi::Tensor> wanted = Named(example, "output.");
  if (!input.empty()) {
    const std::vector<char> bytes = Read(input);
    size_t at = 0;
    for (const ffi::Tensor& tensor : inputs) {
      const size_t size = ffi::GetDataSize(tensor);
      if (at + size > bytes.size()) throw std::runtime_error(input + " is too short for the model's inputs");
      std::memcpy(tensor.data_ptr(), bytes.data() + at, size);
      at += size;
    }
    if (at != bytes.size()) throw std::runtime_error(input + " is too long for the model's inputs");
  }

  const Model model(folder);
  std::vector<ffi::Tensor> outputs = model(inputs);
  std::vector<double> ms;
  for (int i = 0; i < repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    outputs = model(inputs);
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(ms.begin(), ms.end());
  std::printf("%.4f ms a call (median of %d; fastest %.4f), %s threads\n", ms[ms.size() / 2], repeat, ms[0],
              std::getenv("TVM_NUM_THREADS"));

  if (!output.empty()) {
    std::ofstream file(output, std::ios::binary);
    for (const ffi::Tensor& tensor : outputs) {
      file.write(static_cast<const char*>(tensor.data_ptr()), ffi::GetDataSize(tensor));
    }
    if (!file) throw std::runtime_error("cannot write " + output);
  }
  if (!input.empty()) return 0;
  if (outputs.size() != wanted.size()) throw std::runtime_error("the model has another number of outputs");
  double error = 0, largest = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].numel() != wanted[i].numel()) throw std::runtime_error("an output has another shape");
    const float* found = static_cast<const float*>(outputs[i].data_ptr());
    const float* right = static_cast<const float*>(wanted[i].data_ptr());
    for (int64_t k = 0; k < wanted[i].numel(); ++k) {
      const double difference = std::fabs(static_cast<double>(found[k]) - right[k]);
      error = std::isnan(difference) ? INFINITY : std::max(error, difference);
      largest = std::max(largest, std::fabs(static_cast<double>(right[k])));
    }
  }
  const bool agrees = error <= model.tolerance() * std::max(1.0, largest);
  std::printf("%s: largest difference from PyTorch %.3g\n", agrees ? "agrees" : "DISAGREES", error);
  return agrees ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
