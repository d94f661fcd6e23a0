// What both C++ verifiers share: read a bundle's golden arrays, check the pixels, compare outputs.
// C++17, standard library only. Nothing here knows a runtime.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
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
        throw std::runtime_error(path.string() + " is no .npy file of version 1.0");
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

// The whole check of one artifact; `batch` is how many images the model takes at a time.
inline int verify(const fs::path& bundle, const fs::path& model, int64_t batch, const Run& run) {
    Report report;
    Array input = read(bundle / "golden" / "input.npy");
    check_pixels(bundle, input, report);
    std::string folder = model.parent_path().filename().string();  // onnx-fp32
    std::string precision = folder.substr(folder.rfind('-') + 1);
    std::map<std::string, Array> outputs;
    for (int64_t start = 0; start < input.rows(); start += batch) {
        std::vector<char> images;
        for (int64_t i = start; i < start + batch; ++i) {  // the last batch is filled up
            const char* row =
                input.bytes.data() + std::min(i, input.rows() - 1) * input.row_bytes();
            images.insert(images.end(), row, row + input.row_bytes());
        }
        int64_t rows = std::min(batch, input.rows() - start);
        for (auto& [name, value] : run(images)) {
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
    std::vector<std::string> names = sample_names(bundle);
    for (const auto& file : fs::directory_iterator(bundle / "golden" / "allowed" / precision)) {
        std::string name = file.path().stem().string();
        auto found = outputs.find(name);
        if (found == outputs.end()) report.line(false, name, "the output is missing");
        else
            compare(read(bundle / "golden" / (name + ".npy")), read(file.path()), found->second,
                    names, name, report);
    }
    return report.status();
}

// Calls `check` with the two arguments of the command line; errors are status 2.
inline int main(int count, char** arguments,
                const std::function<int(const fs::path&, const fs::path&)>& check) {
    if (count != 3) {
        std::fprintf(stderr, "usage: %s BUNDLE_FOLDER MODEL_FILE\n", arguments[0]);
        return 2;
    }
    try {
        return check(arguments[1], arguments[2]);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}

}  // namespace golden
