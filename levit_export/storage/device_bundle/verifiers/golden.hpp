// What both C++ verifiers share: read a bundle's golden arrays, check the pixels, compare outputs,
// and write what was measured for `levit-export check BUNDLE --results FILE`.
// C++17, standard library only. Nothing here knows a runtime.

#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace golden {

namespace fs = std::filesystem;

// An array in memory: raw little-endian numbers in C order.
struct Array {
    std::string type;  // as .npy writes it: <f4, <f8, |u1
    std::vector<int64_t> shape;
    std::vector<char> bytes;

    int64_t rows() const { return shape.at(0); }
    size_t row_bytes() const { return bytes.size() / rows(); }
    size_t width() const { return type == "<f8" ? 8 : type == "<f4" ? 4 : type == "<f2" ? 2 : 1; }
    size_t count() const { return bytes.size() / width(); }

    double at(size_t index) const {
        const char* start = bytes.data() + index * width();
        if (type == "<f8") { double value; std::memcpy(&value, start, 8); return value; }
        if (type == "<f4") { float value; std::memcpy(&value, start, 4); return value; }
        if (type == "|u1") return static_cast<unsigned char>(*start);
        throw std::runtime_error("numbers of type " + type + " are not read here");
    }
};

// Reads .npy version 1.0 in the form that bundles hold (docs: little-endian, C order).
inline Array read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path.string() + " cannot be read");
    std::vector<char> all{std::istreambuf_iterator<char>(file), {}};
    if (all.size() < 10 || std::memcmp(all.data(), "\x93NUMPY\x01\x00", 8) != 0)
        throw std::runtime_error(path.string() + " is not a .npy file of version 1.0");
    size_t length = static_cast<unsigned char>(all[8]) + 256 * static_cast<unsigned char>(all[9]);
    if (10 + length > all.size()) throw std::runtime_error(path.string() + " is truncated");
    std::string header(all.data() + 10, length);
    auto between = [&](const std::string& left, char right) {
        size_t start = header.find(left);
        size_t end = start == std::string::npos ? start : header.find(right, start + left.size());
        if (end == std::string::npos) throw std::runtime_error(path.string() + ": odd header");
        return header.substr(start + left.size(), end - start - left.size());
    };
    if (header.find("'fortran_order': False") == std::string::npos)
        throw std::runtime_error(path.string() + " is not in C order");
    Array array;
    array.type = between("'descr': '", '\'');
    size_t count = 1;
    std::string shape = between("'shape': (", ')');
    for (size_t at = 0; at < shape.size(); at = shape.find(',', at) + 1) {
        if (shape.find_first_of("0123456789", at) == std::string::npos) break;
        array.shape.push_back(std::stoll(shape.substr(at)));
        count *= static_cast<size_t>(array.shape.back());
        if (shape.find(',', at) == std::string::npos) break;
    }
    array.bytes.assign(all.begin() + 10 + length, all.end());
    if (array.shape.empty() || array.rows() < 1 || count * array.width() != array.bytes.size())
        throw std::runtime_error(path.string() + " does not hold what its header says");
    return array;
}

// One inference: `rows` images one behind the other; gives every output by its name.
using Run = std::function<std::map<std::string, Array>(const std::vector<char>& images)>;

// Prints one line and counts failures.
class Report {
  public:
    void line(bool passed, const std::string& check, const std::string& detail) {
        std::printf("%-8s%s: %s\n", passed ? "pass" : "fail", check.c_str(), detail.c_str());
        failures_ += !passed;
        checks_ += 1;
    }
    // 0 pass, 1 fail; nothing checked is no pass.
    int status() const {
        std::printf("%s\n", failures_ || !checks_ ? "fail" : "pass");
        return failures_ || !checks_ ? 1 : 0;
    }

  private:
    int failures_ = 0, checks_ = 0;
};

inline std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2e", value);
    return text;
}

inline std::vector<std::string> sample_names(const fs::path& bundle) {
    std::ifstream file(bundle / "golden" / "samples.txt");
    std::vector<std::string> names;
    for (std::string line; std::getline(file, line);) names.push_back(line);
    return names;
}

// uint8 RGB (H, W, 3) to the model's input (3, H, W): (p / 255 - mean) / std, in double, rounded
// once. The lines to take over into an app.
inline std::vector<float> normalise(const Array& cropped, const Array& mean_and_std) {
    size_t pixels = cropped.count() / 3;
    std::vector<float> input(cropped.count());
    for (size_t channel = 0; channel < 3; ++channel)
        for (size_t pixel = 0; pixel < pixels; ++pixel)
            input[channel * pixels + pixel] = static_cast<float>(
                (cropped.at(pixel * 3 + channel) / 255 - mean_and_std.at(channel)) /
                mean_and_std.at(3 + channel));
    return input;
}

// Every golden image, normalised here, has to be its row of the golden input.
inline void check_pixels(const fs::path& bundle, const Array& input, Report& report) {
    std::vector<std::string> names = sample_names(bundle);
    if (names.size() != static_cast<size_t>(input.rows()))
        return report.line(false, "pixels", "golden/samples.txt does not name every row");
    Array mean_and_std = read(bundle / "golden" / "normalisation.npy");
    size_t images = 0, wrong = 0;
    for (size_t row = 0; row < names.size(); ++row) {
        fs::path path = bundle / "golden" / "cropped" / (names[row] + ".npy");
        if (!fs::exists(path)) continue;
        Array cropped = read(path);
        const char* wanted = input.bytes.data() + row * input.row_bytes();
        bool equal = false;
        if (input.type == "|u1") {  // the model normalises; only the layout may differ
            bool planes = input.shape.back() != 3;
            equal = cropped.bytes.size() == input.row_bytes();
            size_t pixels = cropped.count() / 3;
            for (size_t i = 0; equal && i < cropped.bytes.size(); ++i)
                equal = wanted[planes ? (i % 3) * pixels + i / 3 : i] == cropped.bytes[i];
        } else {
            std::vector<float> mine = normalise(cropped, mean_and_std);
            equal = input.type == "<f4" && mine.size() * 4 == input.row_bytes() &&
                    std::memcmp(mine.data(), wanted, input.row_bytes()) == 0;
        }
        if (!equal) report.line(false, "normalisation", names[row] + " differs from its input");
        images += 1;
        wrong += !equal;
    }
    if (!wrong) report.line(true, "pixels", std::to_string(images) + " images give the golden input");
}

// Row i passes when max|candidate_i - reference_i| <= allowed_i. NaN does not.
inline void compare(const Array& reference, const Array& allowed, const Array& candidate,
                    const std::vector<std::string>& names, const std::string& check,
                    Report& report) {
    if (candidate.shape != reference.shape || candidate.type != "<f4")
        return report.line(false, check, "another shape or type than the reference");
    if (allowed.rows() != reference.rows())
        return report.line(false, check, "not one tolerance for each row");
    size_t rows = static_cast<size_t>(reference.rows()), width = reference.count() / rows;
    double worst = 0;
    for (size_t row = 0; row < rows; ++row) {
        double error = 0;
        for (size_t i = row * width; i < (row + 1) * width; ++i) {
            double distance = std::fabs(candidate.at(i) - reference.at(i));
            if (!(distance <= error)) error = distance;  // keeps a NaN
            if (!std::isfinite(distance)) break;
        }
        if (!(error <= allowed.at(row)))
            return report.line(false, check, "error " + number(error) + " on " + names.at(row) +
                                                 " exceeds " + number(allowed.at(row)));
        worst = std::fmax(worst, error / allowed.at(row));
    }
    report.line(true, check, std::to_string(rows) + " samples, at most " +
                                 std::to_string(static_cast<int>(worst * 100 + 0.5)) +
                                 "% of the tolerance");
}

// What the command line asks for, and when the program began to load the model.
struct Asked {
    fs::path bundle, model, results;
    std::string device;
    std::string provider;  // NAME[,KEY=VALUE...] of ONNX Runtime, empty for its CPU kernels
    double sustain = 0;  // seconds of calls in a row, after the warm ones
    std::chrono::steady_clock::time_point start;
};

inline double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The results file: JSON whose last member is the CRC-32 of all bytes before it. The schema is in
// levit-export's docs/bundle-format.md.
namespace json {

inline std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (unsigned char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c < 32 || c == 127 ? ' ' : static_cast<char>(c);
    }
    return out + "\"";
}

inline std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
}

template <typename Values, typename Show>
std::string list(const Values& values, Show show) {
    std::string out;
    for (const auto& value : values) out += (out.empty() ? "" : ", ") + show(value);
    return "[" + out + "]";
}

inline std::string base64(const std::vector<char>& bytes) {
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    for (size_t i = 0; i < bytes.size(); i += 3) {
        uint32_t group = 0;
        for (size_t k = 0; k < 3; ++k)
            group = group << 8 | (i + k < bytes.size() ? static_cast<uint8_t>(bytes[i + k]) : 0);
        for (size_t k = 0; k < 4; ++k)
            out += i + k <= bytes.size() ? digits[group >> (18 - 6 * k) & 63] : '=';
    }
    return out;
}

inline uint32_t crc32(const std::string& text) {
    uint32_t crc = 0xFFFFFFFF;
    for (unsigned char byte : text) {
        crc ^= byte;
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    return ~crc;
}

}  // namespace json

// The SHA-256 that names the bundle: that of bundle.json, as SHA256SUMS has it.
inline std::string bundle_hash(const fs::path& bundle) {
    std::ifstream file(bundle / "SHA256SUMS");
    for (std::string line; std::getline(file, line);)
        if (line.size() > 66 && line.substr(66) == "bundle.json") return line.substr(0, 64);
    throw std::runtime_error("SHA256SUMS does not name bundle.json");
}

// The processor's name, where the system is Linux; --device gives another.
inline std::string device_name() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
    return "unnamed device";
}

inline const char* system_name() {
#if defined(_WIN32)
    return "Windows";
#elif defined(__ANDROID__)
    return "Android";
#elif defined(__APPLE__)
    return "Apple";
#elif defined(__linux__)
    return "Linux";
#else
    return "another system";
#endif
}

// Seconds of calls in a row, for as long as `wanted(calls, seconds since the start)`.
template <typename Call, typename Wanted>
std::vector<double> timed(const Call& call, const Wanted& wanted) {
    std::vector<double> seconds;
    auto start = std::chrono::steady_clock::now();
    while (wanted(seconds.size(), seconds_since(start))) {
        auto before = std::chrono::steady_clock::now();
        call();
        seconds.push_back(seconds_since(before));
    }
    return seconds;
}

// Measures the regimes that are left and writes the file.
inline void write_results(const Asked& asked, const std::string& runtime, const std::string& unit,
                          const std::map<std::string, Array>& outputs, double cold, double first,
                          int64_t batch, const std::function<void()>& call) {
    for (int i = 0; i < 5; ++i) call();
    auto warm = timed(call, [](size_t count, double elapsed) { return count < 50 || elapsed < 1; });
    auto sustained = timed(call, [&](size_t, double elapsed) { return elapsed < asked.sustain; });
    std::string values;
    for (const auto& [name, value] : outputs) {
        if (value.type != "<f4") throw std::runtime_error(name + " is not float32");
        auto side = [](int64_t each) { return std::to_string(each); };
        values += (values.empty() ? "" : ",") + ("\n    " + json::quoted(name)) +
                  ": {\"shape\": " + json::list(value.shape, side) + ", \"float32\": \"" +
                  json::base64(value.bytes) + "\"}";
    }
    std::string artifact = asked.model.parent_path().filename().string() + "/" +
                           asked.model.filename().string();
    std::string body = "{\n \"format\": \"levit-export results\",\n \"schema\": 1,\n"
        " \"bundle\": " + json::quoted(bundle_hash(asked.bundle)) +
        ",\n \"program\": \"C++ verifier\",\n \"device\": " + json::quoted(asked.device) +
        ",\n \"system\": " + json::quoted(system_name()) +
        ",\n \"rows\": [\n  {\n   \"artifact\": " + json::quoted(artifact) +
        ",\n   \"runtime\": " + json::quoted(runtime) + ",\n   \"unit\": " + json::quoted(unit) +
        ",\n   \"error\": \"\",\n   \"outputs\": {" + values + "\n   },\n   \"latency\": {" +
        "\"batch\": " + std::to_string(batch) + ", \"threads\": 0, \"cold_s\": " +
        json::number(cold) + ", \"first_s\": " + json::number(first) +
        ",\n    \"warm_s\": " + json::list(warm, json::number) +
        ",\n    \"sustained_s\": " + json::list(sustained, json::number) + "}\n  }\n ]";
    char checksum[9];
    std::snprintf(checksum, sizeof checksum, "%08x", static_cast<unsigned>(json::crc32(body)));
    fs::path beside = asked.results;
    beside += ".part";  // a full disk must not leave half a file
    {
        std::ofstream file(beside, std::ios::binary);
        file << body << ",\n\"crc32\": \"" << checksum << "\"\n}\n";
        file.close();
        if (!file) throw std::runtime_error(beside.string() + " cannot be written");
    }
    fs::rename(beside, asked.results);
}

// The whole check of one artifact; `batch` is how many images the model takes at a time.
inline int verify(const Asked& asked, const std::string& runtime, const std::string& unit,
                  int64_t batch, const Run& run) {
    Report report;
    auto loaded = std::chrono::steady_clock::now();
    Array input = read(asked.bundle / "golden" / "input.npy");
    std::map<std::string, Array> outputs;
    auto filled = [&](int64_t start) {  // the last batch is filled up
        std::vector<char> images;
        for (int64_t i = start; i < start + batch; ++i) {
            const char* row =
                input.bytes.data() + std::min(i, input.rows() - 1) * input.row_bytes();
            images.insert(images.end(), row, row + input.row_bytes());
        }
        return images;
    };
    std::vector<char> images = filled(0);
    double reading = seconds_since(loaded);
    auto called = std::chrono::steady_clock::now();
    run(images);
    double first = seconds_since(called), cold = seconds_since(asked.start) - reading;
    check_pixels(asked.bundle, input, report);
    std::string folder = asked.model.parent_path().filename().string();  // onnx-fp32
    std::string precision = folder.substr(folder.rfind('-') + 1);
    for (int64_t start = 0; start < input.rows(); start += batch) {
        int64_t rows = std::min(batch, input.rows() - start);
        for (auto& [name, value] : run(filled(start))) {
            if (value.shape.empty() || value.rows() != batch)
                throw std::runtime_error(name + " has not one row for each image");
            Array& all = outputs[name];
            size_t used = value.row_bytes() * static_cast<size_t>(rows);
            all.bytes.insert(all.bytes.end(), value.bytes.begin(), value.bytes.begin() + used);
            all.type = value.type;
            all.shape = value.shape;
            all.shape[0] = start + rows;
        }
    }
    std::vector<std::string> names = sample_names(asked.bundle);
    fs::path golden = asked.bundle / "golden";
    for (const auto& file : fs::directory_iterator(golden / "allowed" / precision)) {
        std::string name = file.path().stem().string();
        auto found = outputs.find(name);
        if (found == outputs.end()) report.line(false, name, "the output is missing");
        else
            compare(read(golden / (name + ".npy")), read(file.path()), found->second, names, name,
                    report);
    }
    if (!asked.results.empty())
        write_results(asked, runtime, unit, outputs, cold, first, batch, [&] { run(images); });
    return report.status();
}

// Calls `check` with what the command line asks for; errors are status 2.
inline int main(int count, char** arguments, const std::function<int(const Asked&)>& check) {
    Asked asked;
    asked.device = device_name();
    bool understood = count >= 3 && count % 2 == 1;
    for (int i = 3; understood && i < count; i += 2) {
        std::string option = arguments[i], value = arguments[i + 1];
        if (option == "--results") asked.results = value;
        else if (option == "--device") asked.device = value;
        else if (option == "--provider") asked.provider = value;
        else if (option == "--sustain") asked.sustain = std::atof(value.c_str());
        else understood = false;
    }
    if (!understood) {
        std::fprintf(stderr,
                     "usage: %s BUNDLE_FOLDER MODEL_FILE [--results FILE] [--device NAME] "
                     "[--sustain SECONDS] [--provider NAME[,KEY=VALUE...]]\n", arguments[0]);
        return 2;
    }
    asked.bundle = arguments[1];
    asked.model = arguments[2];
    asked.start = std::chrono::steady_clock::now();
    try {
        return check(asked);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}

}  // namespace golden
