// Check the OpenVINO model of a bundle with OpenVINO's C++ API, without Python.
//
//   sha256sum -c SHA256SUMS
//   g++ -std=c++17 -O2 verify_openvino.cpp -I OV/include -L OV/lib -lopenvino
//       -Wl,-rpath,OV/lib -o verify_openvino                           (one line)
//   ./verify_openvino . openvino-fp32/MODEL.xml [--results FILE] [--sustain SECONDS]
//
// OV is an unpacked release of OpenVINO (its folder runtime/). Headers and libraries of the Python
// wheel do as well: -I PACKAGE/include PACKAGE/libs/libopenvino.so.* -Wl,-rpath,PACKAGE/libs, where
// PACKAGE is site-packages/openvino. Exit status: 0 pass, 1 fail, 2 could not be run.

#include <openvino/openvino.hpp>

#include "golden.hpp"

namespace {

golden::Array copy(const ov::Tensor& tensor) {
    golden::Array array;
    for (size_t side : tensor.get_shape()) array.shape.push_back(static_cast<int64_t>(side));
    if (tensor.get_element_type() != ov::element::f32) {
        array.type = "not float32";
        return array;
    }
    array.type = "<f4";
    const char* start = reinterpret_cast<const char*>(tensor.data<float>());
    array.bytes.assign(start, start + tensor.get_byte_size());
    return array;
}

int check(const golden::Asked& asked) {
    if (!asked.provider.empty())
        throw std::runtime_error("--provider is about ONNX Runtime, and this runs OpenVINO");
    ov::Core core;
    // What the file asks for, else float32: some processors would take bfloat16 or float16 then.
    std::shared_ptr<ov::Model> graph = core.read_model(asked.model.string());
    const std::vector<std::string> place{"runtime_options", ov::hint::inference_precision.name()};
    ov::element::Type type = ov::element::f32;
    if (graph->has_rt_info(place) && graph->get_rt_info<std::string>(place) == "bf16")
        type = ov::element::bf16;  // other words there are not this tool's
    ov::CompiledModel compiled =
        core.compile_model(graph, "CPU", ov::hint::inference_precision(type));
    ov::element::Type taken = compiled.get_property(ov::hint::inference_precision);
    if (type != ov::element::f32 && taken != type)
        throw std::runtime_error("the file asks for " + type.get_type_name() +
                                 ", and OpenVINO takes " + taken.get_type_name() +
                                 " on this processor");
    ov::InferRequest request = compiled.create_infer_request();
    auto port = compiled.input();
    ov::PartialShape partial = port.get_partial_shape();
    if (partial[0].is_dynamic()) partial[0] = 1;  // an open batch
    ov::Shape shape = partial.to_shape();

    auto run = [&](const std::vector<char>& images) {
        ov::Tensor input(port.get_element_type(), shape);
        if (input.get_byte_size() != images.size())
            throw std::runtime_error("the golden input does not fit the model's");
        std::memcpy(input.data(), images.data(), images.size());
        request.set_input_tensor(input);
        request.infer();
        std::map<std::string, golden::Array> outputs;
        for (const auto& output : compiled.outputs())
            outputs[output.get_any_name()] = copy(request.get_tensor(output));
        return outputs;
    };
    std::string runtime = "openvino " + std::string(ov::get_openvino_version().buildNumber);
    return golden::verify(asked, runtime, "CPU", static_cast<int64_t>(shape[0]), run);
}

}  // namespace

int main(int count, char** arguments) { return golden::main(count, arguments, check); }
