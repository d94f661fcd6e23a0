// Check the Core ML model of a bundle on a Mac, with Core ML itself and without Python.
//
//   swiftc -O verify.swift -o verify
//   ./verify . coreml-fp16/MODEL.mlpackage [cpuOnly | cpuAndNeuralEngine | cpuAndGPU | all]
//
// macOS 13 or later. In an app, take `check` and give it the bundle's folder as a resource.
// Exit status: 0 pass, 1 fail, 2 could not be run.

import CoreML
import CryptoKit
import Foundation

struct Trouble: Error { let what: String }

/// An array of the bundle: `.npy` version 1.0, little-endian, C order.
struct Golden {
    let type: String  // <f4, <f8, |u1
    let shape: [Int]
    let bytes: Data

    var rows: Int { shape[0] }
    var rowCount: Int { shape.dropFirst().reduce(1, *) }

    init(_ url: URL) throws {
        let all = try Data(contentsOf: url)
        guard all.count >= 10, all.prefix(8) == Data([0x93] + Array("NUMPY".utf8) + [1, 0]) else {
            throw Trouble(what: "\(url.path) is no .npy file of version 1.0")
        }
        let end = 10 + Int(all[8]) + 256 * Int(all[9])
        guard all.count >= end,
            let header = String(data: all.subdata(in: 10..<end), encoding: .ascii),
            header.contains("'fortran_order': False"),
            let type = Golden.between("'descr': '", "'", header),
            let shape = Golden.between("'shape': (", ")", header)
        else { throw Trouble(what: "\(url.path) has an odd header") }
        self.type = type
        self.shape = shape.split(separator: ",").compactMap {
            Int($0.trimmingCharacters(in: .whitespaces))
        }
        bytes = all.subdata(in: end..<all.count)
        let width = ["<f8": 8, "<f4": 4, "|u1": 1][type] ?? 0
        guard !self.shape.isEmpty, bytes.count == width * self.shape.reduce(1, *), bytes.count > 0
        else { throw Trouble(what: "\(url.path) does not hold what its header says") }
    }

    static func between(_ left: String, _ right: String, _ text: String) -> String? {
        guard let start = text.range(of: left),
            let end = text.range(of: right, range: start.upperBound..<text.endIndex)
        else { return nil }
        return String(text[start.upperBound..<end.lowerBound])
    }

    /// All numbers, row after row.
    func values() -> [Double] {
        bytes.withUnsafeBytes { raw in
            switch type {
            case "<f8": return (0..<bytes.count / 8).map {
                Double(bitPattern: raw.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self))
            }
            case "<f4": return (0..<bytes.count / 4).map {
                Double(Float(bitPattern: raw.loadUnaligned(fromByteOffset: $0 * 4, as: UInt32.self)))
            }
            default: return raw.map { Double($0) }
            }
        }
    }
}

/// uint8 RGB (H, W, 3) to the model's input (3, H, W): (p / 255 - mean) / std, in Double, rounded
/// once. The lines to take over into an app.
func normalise(_ cropped: [Double], _ meanAndStd: [Double]) -> [Float] {
    let pixels = cropped.count / 3
    return (0..<cropped.count).map { index in
        let (channel, pixel) = (index / pixels, index % pixels)
        let scaled = cropped[pixel * 3 + channel] / 255
        return Float((scaled - meanAndStd[channel]) / meanAndStd[3 + channel])
    }
}

/// `sha256sum -c SHA256SUMS`.
func damagedFiles(_ bundle: URL) throws -> [String] {
    let sums = try String(contentsOf: bundle.appendingPathComponent("SHA256SUMS"), encoding: .utf8)
    return sums.split(separator: "\n").compactMap { line in
        let name = String(line.dropFirst(66))
        let content = try? Data(contentsOf: bundle.appendingPathComponent(name))
        let hash = content.map { SHA256.hash(data: $0).map { String(format: "%02x", $0) }.joined() }
        return hash == String(line.prefix(64)) ? nil : name
    }
}

/// One image through the model; a classifier's probabilities come in the order of `labels`.
func predict(_ model: MLModel, _ row: [Double], _ labels: [String]) throws -> [String: [Double]] {
    let (name, description) = model.modelDescription.inputDescriptionsByName.first!
    guard let wanted = description.multiArrayConstraint else {
        throw Trouble(what: "the model takes no array")
    }
    let input = try MLMultiArray(shape: wanted.shape, dataType: wanted.dataType)
    guard input.count == row.count else {
        throw Trouble(what: "the model takes \(wanted.shape), the golden input has other rows")
    }
    for (index, value) in row.enumerated() { input[index] = NSNumber(value: value) }
    let features = try MLDictionaryFeatureProvider(dictionary: [name: input])
    let answer = try model.prediction(from: features)
    var outputs: [String: [Double]] = [:]
    for name in answer.featureNames {
        guard let value = answer.featureValue(for: name) else { continue }
        if let array = value.multiArrayValue {
            outputs[name] = (0..<array.count).map { array[$0].doubleValue }
        } else if value.type == .dictionary {
            outputs["probabilities"] = labels.map {
                value.dictionaryValue[$0]?.doubleValue ?? .nan
            }
        }
    }
    return outputs
}

func softmax(_ logits: ArraySlice<Double>) -> [Double] {
    let largest = logits.max() ?? 0
    let powers = logits.map { exp($0 - largest) }
    let sum = powers.reduce(0, +)
    return powers.map { $0 / sum }
}

/// Prints a line for each check; whether all passed.
func check(_ bundle: URL, _ package: URL, _ units: MLComputeUnits) throws -> Bool {
    let golden = bundle.appendingPathComponent("golden")
    func file(_ path: String) -> URL { golden.appendingPathComponent(path + ".npy") }
    var passed = true
    func line(_ ok: Bool, _ check: String, _ detail: String) {
        print((ok ? "pass    " : "fail    ") + check + ": " + detail)
        passed = passed && ok
    }

    let damaged = try damagedFiles(bundle)
    line(damaged.isEmpty, "files", damaged.isEmpty ? "as described" : "altered: \(damaged)")
    if !damaged.isEmpty { return false }

    let input = try Golden(file("input"))
    let rows = input.values()
    let samples = try String(
        contentsOf: golden.appendingPathComponent("samples.txt"), encoding: .utf8
    ).split(separator: "\n").map(String.init)
    guard samples.count == input.rows else {
        throw Trouble(what: "samples.txt does not name every row")
    }
    func row(_ index: Int) -> ArraySlice<Double> {
        rows[index * input.rowCount..<(index + 1) * input.rowCount]
    }

    let meanAndStd = try Golden(file("normalisation")).values()
    var images = 0
    for (index, name) in samples.enumerated() where input.type == "<f4" {
        guard FileManager.default.fileExists(atPath: file("cropped/\(name)").path) else { continue }
        let mine = normalise(try Golden(file("cropped/\(name)")).values(), meanAndStd)
        images += 1
        if mine.map(Double.init) != Array(row(index)) {
            line(false, "normalisation", "\(name) differs from its input")
        }
    }
    if passed { line(true, "pixels", "\(images) images give the golden input") }

    let compiled = try MLModel.compileModel(at: package)
    defer { try? FileManager.default.removeItem(at: compiled) }
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units
    let model = try MLModel(contentsOf: compiled, configuration: configuration)
    let labels = try String(
        contentsOf: bundle.appendingPathComponent("labels.txt"), encoding: .utf8
    ).split(separator: "\n").map(String.init)
    let answers = try (0..<input.rows).map { try predict(model, Array(row($0)), labels) }

    let folder = package.deletingLastPathComponent().lastPathComponent  // coreml-fp16
    let precision = String(folder.split(separator: "-").last ?? "")
    let allowances = golden.appendingPathComponent("allowed/\(precision)")
    let names = try FileManager.default.contentsOfDirectory(atPath: allowances.path)
        .filter { $0.hasSuffix(".npy") }.map { String($0.dropLast(4)) }.sorted()
    if names.isEmpty { line(false, "outputs", "nothing to compare") }
    for name in names {
        let reference = try Golden(file(name))
        let wanted = reference.values()
        let allowed = try Golden(file("allowed/\(precision)/\(name)")).values()
        guard allowed.count == samples.count, reference.rows == samples.count else {
            throw Trouble(what: "\(name) has not one row and tolerance for each sample")
        }
        let asProbabilities = names.count == 1 && answers[0][name] == nil
        var worst = 0.0
        let passedBefore = passed
        passed = true
        for (index, answer) in answers.enumerated() {
            var expected = Array(
                wanted[index * reference.rowCount..<(index + 1) * reference.rowCount])
            var bound = allowed[index]
            if asProbabilities {  // p = softmax(z): |dp| <= max|dz| / 2, and p is rounded itself
                expected = softmax(expected[...])
                bound = bound / 2 + (precision == "fp16" ? 0x1p-11 : 0x1p-24) * expected.max()!
            }
            guard let found = answer[asProbabilities ? "probabilities" : name],
                found.count == expected.count
            else {
                line(false, name, "the output is missing or of another size")
                break
            }
            let errors = zip(found, expected).map { abs($0 - $1) }
            let error = errors.contains { $0.isNaN } ? Double.nan : errors.max() ?? .nan
            if !(error <= bound) {
                line(false, name, "error \(error) on \(samples[index]) exceeds \(bound)")
            }
            worst = max(worst, error / bound)
        }
        if passed {
            line(true, name, "\(samples.count) samples, at most \(Int(worst * 100))% of the tolerance")
        }
        passed = passed && passedBefore
    }
    return passed
}

let arguments = CommandLine.arguments
let choices: [String: MLComputeUnits] = [
    "cpuOnly": .cpuOnly, "cpuAndNeuralEngine": .cpuAndNeuralEngine, "cpuAndGPU": .cpuAndGPU,
    "all": .all,
]
guard (3...4).contains(arguments.count),
    let units = choices[arguments.count == 4 ? arguments[3] : "cpuOnly"]
else {
    print("usage: verify BUNDLE_FOLDER MODEL.mlpackage [\(choices.keys.sorted().joined(separator: " | "))]")
    exit(2)
}
do {
    let passed = try check(
        URL(fileURLWithPath: arguments[1]), URL(fileURLWithPath: arguments[2]), units)
    print(passed ? "pass" : "fail")
    exit(passed ? 0 : 1)
} catch {
    print("error: \((error as? Trouble)?.what ?? error.localizedDescription)")
    exit(2)
}
