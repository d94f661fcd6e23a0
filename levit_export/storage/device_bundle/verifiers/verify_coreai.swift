// Check the Core AI asset of a bundle on a Mac, with Core AI itself and without Python.
//
//   swiftc -O -parse-as-library golden.swift verify_coreai.swift -o verify_coreai
//   ./verify_coreai . coreai-fp16/MODEL.aimodel [cpuOnly | gpu | neuralEngine | all]
//       [RESULTS.json [SECONDS]]                                        (one line)
//
// `gpu` and `neuralEngine` are preferred and not enforced: Core AI computes elsewhere what they
// cannot. RESULTS.json is for `levit-export check BUNDLE --results RESULTS.json`, SECONDS is how
// long it times calls in a row. This program is written against Apple's documentation and has
// never been compiled or run by those who wrote it: they had no Mac.
//
// macOS 27 or later, on Apple silicon. In an app, take `check` and give it the bundle's folder as
// a resource. Exit status: 0 pass, 1 fail, 2 could not be run.

import CoreAI
import Foundation

/// One image through the function of an asset.
func predict(_ function: InferenceFunction, _ row: [Double]) async throws -> [String: [Double]] {
    let described = function.descriptor
    guard let name = described.inputNames.first,
        case .ndArray(let wanted)? = described.inputDescriptor(of: name)
    else { throw Trouble(what: "the model takes no array") }
    guard wanted.shape.reduce(1, *) == row.count else {
        throw Trouble(what: "the model takes \(wanted.shape), the golden input has other rows")
    }
    let input: NDArray
    switch wanted.scalarType {
    case .float32: input = NDArray(scalars: row.map { Float($0) }, shape: wanted.shape)
    case .uint8: input = NDArray(scalars: row.map { UInt8($0) }, shape: wanted.shape)
    default: throw Trouble(what: "the model takes \(wanted.scalarType)")
    }
    var answer = try await function.run(inputs: [name: input])
    var outputs: [String: [Double]] = [:]
    for name in described.outputNames {
        guard let array = answer.remove(name)?.ndArray, array.scalarType == .float32 else {
            continue
        }
        let places = offsets(array.shape, array.strides)
        outputs[name] = array.view(as: Float.self).withUnsafePointer { pointer, _, _ in
            places.map { Double(pointer[$0]) }
        }
    }
    return outputs
}

/// Where the numbers of an array lie, row after row; an array need not be dense.
func offsets(_ shape: [Int], _ strides: [Int]) -> [Int] {
    var found = [0]
    for (side, stride) in zip(shape, strides) {
        found = found.flatMap { start in (0..<side).map { start + $0 * stride } }
    }
    return found
}

@main
struct Verify {
    static func main() async {
        let names = [
            "cpuOnly": "cpu_only", "gpu": "gpu", "neuralEngine": "neural_engine", "all": "all",
        ]
        let status = await verify("Core AI", program: "verify_coreai.swift", units: names) {
            _, asset, unit in
            let options: SpecializationOptions
            switch unit {
            case "gpu": options = SpecializationOptions(preferredComputeUnitKind: .gpu)
            case "neuralEngine":
                options = SpecializationOptions(preferredComputeUnitKind: .neuralEngine)
            case "all": options = .default
            default: options = .cpuOnly
            }
            let model = try await AIModel(contentsOf: asset, options: options)
            guard let function = try model.loadFunction(named: "main") else {
                throw Trouble(what: "the asset has no function called main")
            }
            return { row in try await predict(function, row) }
        }
        exit(status)
    }
}
