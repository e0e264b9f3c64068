// SPDX-License-Identifier: GPL-2.0-only
// bench: the parts that tests/bench/run measures with. Each command prints one JSON object.
//
//   load TARGET    a load on a vhost-user socket, a vhost-vdpa device, or "echo", the floor
//   attach SOCKET… an idle client on each, until standard input ends
//   distance A B   how long a cache line takes from one CPU to the other and back
//   remap CHUNKS   how long a look-up takes in a table of so many
#include "bench/echo.h"
#include "bench/report.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <unistd.h>
#include <vqlane/remap.h>

namespace {

using namespace vql::bench;
using nlohmann::json;
using clock = std::chrono::steady_clock;

json distance(int a, int b) {
    constexpr uint64_t rounds = 200000;
    alignas(64) static std::atomic<uint64_t> ball{0};
    std::thread other([b] {
        pin(b);
        for (uint64_t i = 0; i < rounds; i++) {
            while (ball.load(std::memory_order_acquire) != 2 * i + 1) {
            }
            ball.store(2 * i + 2, std::memory_order_release);
        }
    });
    pin(a);
    const auto begin = clock::now();
    for (uint64_t i = 0; i < rounds; i++) {
        ball.store(2 * i + 1, std::memory_order_release);
        while (ball.load(std::memory_order_acquire) != 2 * i + 2) {
        }
    }
    const double ns = std::chrono::duration<double, std::nano>(clock::now() - begin).count();
    other.join();
    return {{"round_trip_ns", ns / rounds}};
}

json remap(uint64_t chunks, bool sequential) {
    constexpr uint32_t shift = VQL_MIN_CHUNK_SHIFT;
    constexpr uint64_t sectors = 8; // of one request: 4 KiB
    constexpr uint64_t look_ups = 10000000;
    const uint64_t all = (chunks << shift) / (sectors * VQL_SECTOR_BYTES);
    std::vector<__u64> words(chunks);
    for (uint64_t i = 0; i < chunks; i++)
        words[i] = vql_extent_word(VQL_EXTENT_MAPPED, uint32_t(i % 7), chunks - 1 - i);
    const vql_extent_table table = {words.data(), chunks, shift};
    double best = 1e9;
    uint64_t sum = 0, random = 1;
    for (int round = 0; round < 5; round++) {
        const auto begin = clock::now();
        for (uint64_t i = 0; i < look_ups; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const uint64_t at = sequential ? i % all : ((random >> 32) * all) >> 32;
            const vql_remap to = vql_remap_lookup(&table, vql_extent_table_at, vql_extent_table_run,
                                                  shift, at * sectors, sectors);
            sum += to.sector + to.target;
        }
        const double ns = std::chrono::duration<double, std::nano>(clock::now() - begin).count();
        best = std::min(best, ns / double(look_ups));
    }
    return {{"chunks", chunks}, {"ns_per_lookup", best}, {"sum", sum}};
}

// A client on each of @sockets, with one queue that stays empty.
int attach(const std::vector<std::string>& sockets) {
    load_options o;
    o.depth = 1;
    std::vector<std::unique_ptr<vql::guest::transport>> devices;
    std::vector<std::unique_ptr<load>> loads;
    for (const std::string& s : sockets) {
        devices.push_back(connect(s));
        loads.push_back(std::make_unique<load>(*devices.back(), o));
    }
    std::printf("%s\n", json{{"attached", sockets.size()}}.dump().c_str());
    std::fflush(stdout);
    char byte;
    while (::read(0, &byte, 1) > 0) {
    }
    return 0;
}

json run_load(const std::string& target, const load_options& o, int cpu, int echo_cpu) {
    if (cpu >= 0)
        pin(cpu);
    if (target == "echo") {
        echo_device echo(echo_cpu);
        load l(echo, o);
        echo.run(l);
        const load_result r = l.run();
        echo.stop();
        return report(r, o);
    }
    const auto device = connect(target);
    load l(*device, o);
    return report(l.run(), o);
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app("measures; each command prints one JSON object");
    app.require_subcommand(1);
    load_options o;
    std::string target;
    int cpu = -1, echo_cpu = 1, a = 0, b = 1;
    uint64_t chunks = 0;
    bool sequential = false;
    std::vector<std::string> sockets;

    CLI::App& l = *app.add_subcommand("load", "a load on a device");
    l.add_option("TARGET", target, "a vhost-user socket, /dev/vhost-vdpa-N, or echo")->required();
    define_load_options(l, o, cpu);
    l.add_option("--read-percent", o.read_percent)->check(CLI::Range(0, 100));
    l.add_option("--echo-cpu", echo_cpu, "of the echo");
    CLI::App& at = *app.add_subcommand("attach", "idle clients, until standard input ends");
    at.add_option("SOCKET", sockets)->required();
    CLI::App& d = *app.add_subcommand("distance", "between two CPUs");
    d.add_option("CPU_A", a)->required();
    d.add_option("CPU_B", b)->required();
    CLI::App& r = *app.add_subcommand("remap", "a look-up");
    r.add_option("CHUNKS", chunks)->required()->check(CLI::Range(1ull, 1ull << 28));
    r.add_flag("--sequential", sequential);
    CLI11_PARSE(app, argc, argv);
    try {
        if (at)
            return attach(sockets);
        const json out = l   ? run_load(target, o, cpu, echo_cpu)
                         : d ? distance(a, b)
                             : remap(chunks, sequential);
        std::printf("%s\n", out.dump().c_str());
        if (l && out.at("errors") != 0) {
            std::fprintf(stderr, "bench: requests ended with errors\n");
            return 1;
        }
    } catch (const std::exception& e) {
        std::fprintf(stderr, "bench: %s\n", e.what());
        return 1;
    }
}
