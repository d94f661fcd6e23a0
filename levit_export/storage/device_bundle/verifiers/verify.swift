// Check the Core ML model of a bundle on a Mac, with Core ML itself and without Python.
//
//   swiftc -O -parse-as-library golden.swift verify.swift -o verify
//   ./verify . coreml-fp16/MODEL.mlpackage [cpuOnly | cpuAndNeuralEngine | cpuAndGPU | all]
//       [RESULTS.json [SECONDS]]                                        (one line)
//
// RESULTS.json is for `levit-export check BUNDLE --results RESULTS.json`, SECONDS is how long it
// times calls in a row. This program has not been run by those who wrote it: they had no Mac.
//
// macOS 13 or later. In an app, take `check` and give it the bundle's folder as a resource.
// Exit status: 0 pass, 1 fail, 2 could not be run.

import CoreML
import Foundation

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

@main
struct Verify {
    static func main() async {
        let choices: [String: MLComputeUnits] = [
            "cpuOnly": .cpuOnly, "cpuAndNeuralEngine": .cpuAndNeuralEngine,
            "cpuAndGPU": .cpuAndGPU, "all": .all,
        ]
        let names = [
            "cpuOnly": "cpu_only", "cpuAndNeuralEngine": "cpu_and_ne",
            "cpuAndGPU": "cpu_and_gpu", "all": "all",
        ]
        var compiled: URL?
        let status = await verify("Core ML", program: "verify.swift", units: names) {
            bundle, package, unit in
            let made = try MLModel.compileModel(at: package)
            compiled = made
            let configuration = MLModelConfiguration()
            configuration.computeUnits = choices[unit]!
            let model = try MLModel(contentsOf: made, configuration: configuration)
            let labels = try String(
                contentsOf: bundle.appendingPathComponent("labels.txt"), encoding: .utf8
            ).split(separator: "\n").map(String.init)
            return { row in try predict(model, row, labels) }
        }
        if let compiled { try? FileManager.default.removeItem(at: compiled) }
        exit(status)
    }
}
