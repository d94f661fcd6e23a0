// Check the ONNX model of a bundle with ONNX Runtime's C++ API, without Python.
//
//   sha256sum -c SHA256SUMS
//   g++ -std=c++17 -O2 verify_onnxruntime.cpp -I ORT/include -L ORT/lib -lonnxruntime
//       -Wl,-rpath,ORT/lib -o verify_onnxruntime                       (one line)
//   ./verify_onnxruntime . onnx-fp32/MODEL.onnx [--results FILE] [--sustain SECONDS]
//       [--provider NAME[,KEY=VALUE...]]     one that this ONNX Runtime was built with, and that it
//                                            takes by name in C++ too
//
// ORT is an unpacked release of ONNX Runtime, or the prefix of the package libonnxruntime-dev
// (there the headers lie in include/onnxruntime). Exit status: 0 pass, 1 fail, 2 could not be run.

#include <onnxruntime_cxx_api.h>

#include <cctype>
#include <unordered_map>

#include "golden.hpp"

namespace {

golden::Array copy(const Ort::Value& value) {
    auto info = value.GetTensorTypeAndShapeInfo();
    golden::Array array;
    array.shape = info.GetShape();
    if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
        array.type = "not float32";
        return array;
    }
    array.type = "<f4";
    const char* start = reinterpret_cast<const char*>(value.GetTensorData<float>());
    array.bytes.assign(start, start + info.GetElementCount() * sizeof(float));
    return array;
}

std::string lower(std::string text) {
    for (char& each : text) each = static_cast<char>(std::tolower(static_cast<unsigned char>(each)));
    return text;
}

// ONNX Runtime would go on with its CPU kernels where a provider does not start or does not take an
// operator (onnxruntime#23647); here that is an error.
void use_provider(Ort::SessionOptions& options, const std::string& asked) {
    const std::string suffix = "ExecutionProvider";
    std::unordered_map<std::string, std::string> given;
    size_t comma = asked.find(',');
    std::string name = asked.substr(0, comma), known;
    while (comma != std::string::npos) {
        size_t next = asked.find(',', comma + 1);
        std::string pair = asked.substr(comma + 1, next - comma - 1);
        size_t equals = pair.find('=');
        if (equals == std::string::npos) throw std::runtime_error(pair + " is not KEY=VALUE");
        given[pair.substr(0, equals)] = pair.substr(equals + 1);
        comma = next;
    }
    for (const std::string& each : Ort::GetAvailableProviders()) {
        std::string plain = each.substr(0, each.size() - suffix.size());
        known += (known.empty() ? "" : ", ") + plain;
        if (lower(name) != lower(each) && lower(name) != lower(plain)) continue;
        if (plain == "CPU" && given.empty()) return;
        if (plain == "CPU") throw std::runtime_error("the CPU provider takes no options");
        options.AddConfigEntry("session.disable_cpu_ep_fallback", "1");
        // These two are listed in one spelling and taken in another (provider_registration.cc).
        if (plain == "Xnnpack" || plain == "Dml") plain = plain == "Dml" ? "DML" : "XNNPACK";
        try {
            options.AppendExecutionProvider(plain, given);
        } catch (const Ort::Exception& error) {  // some are added by functions of their own
            throw std::runtime_error(name + " cannot be chosen by name in C++ (" + error.what() +
                                     "); use verify.py --provider " + asked);
        }
        return;
    }
    throw std::runtime_error("no provider " + name + " is here; known: " + known);
}

int check(const golden::Asked& asked) {
    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "verify");
    Ort::SessionOptions options;
    if (!asked.provider.empty()) use_provider(options, asked.provider);
    Ort::Session session(environment, asked.model.c_str(), options);
    Ort::AllocatorWithDefaultOptions allocator;
    Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

    std::string taken = session.GetInputNameAllocated(0, allocator).get();
    auto type = session.GetInputTypeInfo(0);
    auto info = type.GetTensorTypeAndShapeInfo();
    std::vector<int64_t> shape = info.GetShape();
    shape[0] = shape[0] < 1 ? 1 : shape[0];  // an open batch
    std::vector<std::string> names;
    for (size_t i = 0; i < session.GetOutputCount(); ++i)
        names.push_back(session.GetOutputNameAllocated(i, allocator).get());
    std::vector<const char*> wanted;
    for (const std::string& name : names) wanted.push_back(name.c_str());

    auto run = [&](const std::vector<char>& images) {
        const char* input_name = taken.c_str();
        Ort::Value input = Ort::Value::CreateTensor(
            memory, const_cast<char*>(images.data()), images.size(), shape.data(), shape.size(),
            info.GetElementType());
        auto values = session.Run(Ort::RunOptions{nullptr}, &input_name, &input, 1,
                                  wanted.data(), wanted.size());
        std::map<std::string, golden::Array> outputs;
        for (size_t i = 0; i < values.size(); ++i) outputs[names[i]] = copy(values[i]);
        return outputs;
    };
    std::string runtime = std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString();
    const std::string unit = asked.provider.empty() ? "CPU" : asked.provider;
    return golden::verify(asked, runtime, unit, shape[0], run);
}

}  // namespace

int main(int count, char** arguments) { return golden::main(count, arguments, check); }
