// SPDX-License-Identifier: GPL-2.0-only
#include "bench/report.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

namespace vql::bench {

using nlohmann::json;

void define_load_options(CLI::App& command, load_options& o, int& cpu) {
    command.add_option("--queues", o.queues, "default 1")->check(CLI::Range(1, 64));
    command.add_option("--depth", o.depth, "requests under way on each queue; default 32")
        ->check(CLI::Range(1, 1024));
    command.add_option("--block-size", o.block_bytes, "bytes, or with K, M; default 4K")
        ->check(CLI::Range(512, 16 << 20))
        ->transform(CLI::AsSizeValue(false));
    command.add_flag("--sequential", o.sequential, "default: at random");
    command.add_flag_callback(
        "--direct", [&o] { o.indirect = false; },
        "descriptors in the ring; default: indirect tables");
    command.add_flag("--interrupts", o.interrupts, "sleep until interrupted; default: poll");
    command.add_option("--seconds", o.seconds, "measured; default 1")
        ->check(CLI::Range(0.01, 3600.0));
    command.add_option("--warmup", o.warmup, "seconds before that; default 0.1")
        ->check(CLI::Range(0.0, 60.0));
    command.add_option("--cpu", cpu, "of the driver; default: any");
    command.add_option("--server-pid", o.server_pid, "the process whose CPU time to take");
}

json report(const load_result& r, const load_options& o) {
    json histogram = json::array();
    for (const auto& [floor, count] : r.latency.buckets())
        histogram.push_back({floor, count});
    const double per_second = double(r.requests) / r.seconds;
    return {{"iops", per_second},
            {"bytes_per_second", per_second * o.block_bytes},
            {"requests", r.requests},
            {"all_requests", r.all_requests},
            {"seconds", r.seconds},
            {"errors", r.errors},
            {"latency_ns",
             {{"avg", r.latency.average()},
              {"p50", r.latency.percentile(0.5)},
              {"p99", r.latency.percentile(0.99)},
              {"p999", r.latency.percentile(0.999)},
              {"max", r.latency.max()}}},
            {"histogram", histogram},
            {"answers_per_look", r.looks ? double(r.requests) / double(r.looks) : 0},
            {"server_cpu_ns_per_request", r.server_cpu_ns < 0 || !r.requests
                                              ? json()
                                              : json(r.server_cpu_ns / double(r.requests))},
            {"contended", r.contended()},
            {"contention",
             {{"driver_wait_ms", r.driver_wait_ns / 1e6},
              {"server_wait_ms", r.server_wait_ns / 1e6},
              {"steal_ms", r.steal_ns / 1e6}}}};
}

} // namespace vql::bench
