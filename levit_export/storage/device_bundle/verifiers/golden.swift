// What `verify.swift` (Core ML) and `verify_coreai.swift` (Core AI) share: the bundle's arrays and
// files, the lines to take over into an app, the check itself and the results file.
//
// This has not been run by those who wrote it: they had no Mac.

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
            throw Trouble(what: "\(url.path) is not a .npy file of version 1.0")
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

/// One image through a model: its outputs by name.
typealias Predict = ([Double]) async throws -> [String: [Double]]

/// What `levit-export check BUNDLE --results FILE` judges; its docs/bundle-format.md has the schema.
struct Recorder {
    let file: URL
    let sustain: Double
    let unit: String
    let runtime: String
    let program: String

    /// Times the regimes that are left and writes the file.
    func write(
        _ bundle: URL, _ model: URL, _ answers: [[String: [Double]]], cold: Double, first: Double,
        call: () async throws -> Void
    ) async throws {
        for _ in 0..<5 { try await call() }
        let warm = try await timed(call) { $0 < 50 || $1 < 1 }
        let sustained = try await timed(call) { $1 < sustain }
        var outputs: [String: Any] = [:]
        for name in answers[0].keys {
            var bytes = Data()
            for answer in answers {
                for value in answer[name] ?? [] {
                    withUnsafeBytes(of: Float(value).bitPattern.littleEndian) {
                        bytes.append(contentsOf: $0)
                    }
                }
            }
            let shape = [answers.count, answers[0][name]!.count]
            outputs[name] = ["shape": shape, "float32": bytes.base64EncodedString()] as [String: Any]
        }
        let sums = try String(
            contentsOf: bundle.appendingPathComponent("SHA256SUMS"), encoding: .utf8)
        guard let line = sums.split(separator: "\n").first(where: { $0.hasSuffix("  bundle.json") })
        else { throw Trouble(what: "SHA256SUMS does not name bundle.json") }
        let system = ProcessInfo.processInfo.operatingSystemVersionString
        let folder = model.deletingLastPathComponent().lastPathComponent
        let latency: [String: Any] = [
            "batch": 1, "threads": 0, "cold_s": cold, "first_s": first, "warm_s": warm,
            "sustained_s": sustained,
        ]
        let row: [String: Any] = [
            "artifact": "\(folder)/\(model.lastPathComponent)", "runtime": runtime,
            "unit": unit, "error": "", "outputs": outputs, "latency": latency,
        ]
        let content: [String: Any] = [
            "format": "levit-export results", "schema": 1, "bundle": String(line.prefix(64)),
            "program": program, "device": machine(), "system": system, "rows": [row],
        ]
        let all = try JSONSerialization.data(withJSONObject: content)
        let body = all.dropLast()  // without the last brace: the checksum is the last member
        let checksum = String(format: "%08x", crc32(body))
        try (body + Data(",\n\"crc32\": \"\(checksum)\"\n}\n".utf8)).write(to: file, options: .atomic)
    }

    /// Seconds of calls in a row, for as long as `wanted(calls, seconds since the start)`.
    func timed(
        _ call: () async throws -> Void, _ wanted: (Int, Double) -> Bool
    ) async throws -> [Double] {
        var seconds: [Double] = []
        let start = now()
        while wanted(seconds.count, now() - start) {
            let before = now()
            try await call()
            seconds.append(now() - before)
        }
        return seconds
    }

    /// What the system calls this kind of machine: `Mac15,3`, `iPhone17,1`.
    func machine() -> String {
        var system = utsname()
        uname(&system)
        #if os(macOS)
        var size = 0
        sysctlbyname("hw.model", nil, &size, nil, 0)
        var model = [CChar](repeating: 0, count: max(size, 1))
        sysctlbyname("hw.model", &model, &size, nil, 0)
        return String(cString: model)
        #else
        return withUnsafeBytes(of: &system.machine) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        #endif
    }

    func crc32(_ bytes: Data) -> UInt32 {
        var crc: UInt32 = 0xFFFF_FFFF
        for byte in bytes {
            crc ^= UInt32(byte)
            for _ in 0..<8 { crc = crc >> 1 ^ (crc & 1 == 1 ? 0xEDB8_8320 : 0) }
        }
        return ~crc
    }
}

func now() -> Double { Double(DispatchTime.now().uptimeNanoseconds) / 1e9 }

func softmax(_ logits: ArraySlice<Double>) -> [Double] {
    let largest = logits.max() ?? 0
    let powers = logits.map { exp($0 - largest) }
    let sum = powers.reduce(0, +)
    return powers.map { $0 / sum }
}

/// Prints a line for each check; whether all passed. `open` loads the model, and is timed.
func check(
    _ bundle: URL, _ model: URL, _ recorder: Recorder? = nil, open: () async throws -> Predict
) async throws -> Bool {
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

    let start = now()
    let predict = try await open()
    let (loaded, firstRow) = (now(), Array(row(0)))
    _ = try await predict(firstRow)
    let answered = now()
    var answers: [[String: [Double]]] = []
    for index in 0..<input.rows { answers.append(try await predict(Array(row(index)))) }
    try await recorder?.write(
        bundle, model, answers, cold: answered - start, first: answered - loaded
    ) { _ = try await predict(firstRow) }

    let folder = model.deletingLastPathComponent().lastPathComponent  // coreml-fp16
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
                bound = bound / 2 + (precision == "fp32" ? 0x1p-24 : 0x1p-11) * expected.max()!
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

/// Does what the command line BUNDLE_FOLDER MODEL [UNIT [RESULTS.json [SECONDS]]] asks for; the
/// exit status.
///
/// `units` are what may be asked for, by the names that results have for them; `open` loads the
/// model of a bundle for one of them.
func verify(
    _ runtime: String, program: String, units: [String: String],
    open: (_ bundle: URL, _ model: URL, _ unit: String) async throws -> Predict
) async -> Int32 {
    let arguments = CommandLine.arguments
    let choice = arguments.count > 3 ? arguments[3] : "cpuOnly"
    guard (3...6).contains(arguments.count), let unit = units[choice],
        let sustain = Double(arguments.count > 5 ? arguments[5] : "0")
    else {
        let known = units.keys.sorted().joined(separator: " | ")
        print("usage: verify BUNDLE_FOLDER MODEL [\(known) [RESULTS.json [SECONDS]]]")
        return 2
    }
    let recorder = arguments.count < 5 ? nil : Recorder(
        file: URL(fileURLWithPath: arguments[4]), sustain: sustain, unit: unit, runtime: runtime,
        program: program)
    let bundle = URL(fileURLWithPath: arguments[1])
    let model = URL(fileURLWithPath: arguments[2])
    do {
        let passed = try await check(bundle, model, recorder) {
            try await open(bundle, model, choice)
        }
        print(passed ? "pass" : "fail")
        return passed ? 0 : 1
    } catch {
        print("error: \((error as? Trouble)?.what ?? error.localizedDescription)")
        return 2
    }
}
