// SPDX-License-Identifier: GPL-2.0-only
#include "cli/bench.h"

#include "bench/report.h"
#include "cli/table.h"

#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

namespace vql {

namespace {

// A client that is to be served is answered at once; one behind another waits.
constexpr guest::milliseconds patience{5000};

std::string counted(unsigned n, const std::string& thing) {
    return std::to_string(n) + " " + thing + (n == 1 ? "" : "s");
}

std::string what_was_done(const bench_options& o) {
    const bench::load_options& l = o.load;
    std::string mix = l.sequential ? "sequential " : "random ";
    if (!o.write_percent)
        mix += "reads";
    else
        mix += std::to_string(100 - o.write_percent) + " % reads, " +
               std::to_string(o.write_percent) + " % writes";
    return o.device + ": " + mix + " of " + human_size(l.block_bytes) + ", " +
           counted(l.queues, "queue") + " of depth " + std::to_string(l.depth) +
           (l.indirect ? ", indirect" : ", direct") + (l.interrupts ? ", interrupts" : ", polling");
}

std::string text_of(const bench_options& o, const bench::load_result& r) {
    const double per_second = double(r.requests) / r.seconds;
    table t({{"IOPS", true},
             {"MB/s", true},
             {"AVG", true},
             {"P50", true},
             {"P99", true},
             {"P99.9", true},
             {"MAX", true},
             {"BATCH", true},
             {"SERVER CPU", true}});
    const auto time = [](double ns) { return human_duration(uint64_t(ns + 0.5)); };
    t.add({fixed(per_second, 0), fixed(per_second * o.load.block_bytes / 1e6, 1),
           time(r.latency.average()), human_duration(r.latency.percentile(0.5)),
           human_duration(r.latency.percentile(0.99)), human_duration(r.latency.percentile(0.999)),
           human_duration(r.latency.max()),
           r.looks ? fixed(double(r.requests) / double(r.looks), 1) : "-",
           r.server_cpu_ns < 0 || !r.requests ? "-" : time(r.server_cpu_ns / double(r.requests))});
    std::string text = what_was_done(o) + "\n" + t.text();
    if (r.contended())
        text += "Others had the CPUs for " +
                time(r.driver_wait_ns + r.server_wait_ns + r.steal_ns) + " of " +
                time(r.seconds * 1e9) + ": measure again when the machine is quiet.\n";
    return text;
}

// The driver waits for a device that may come; an operator's typing error should not.
result<void> check_device(const std::string& device) {
    struct stat st {};
    if (::stat(device.c_str(), &st))
        return errno_error(device, errno);
    if (!S_ISSOCK(st.st_mode) && !S_ISCHR(st.st_mode))
        return error{device + ": neither a vhost-user socket nor /dev/vhost-vdpa-N "
                              "(vqlane disk list names them)"};
    return {};
}

constexpr const char* has_guest =
    "; is a guest connected to it (vqlane disk list)? Each disk has one at a time";

} // namespace

void define_bench_options(CLI::App& command, bench_options& o) {
    command
        .add_option("DEVICE", o.device,
                    "a vhost-user-blk socket or /dev/vhost-vdpa-N that no guest is connected to")
        ->required();
    bench::define_load_options(command, o.load, o.cpu);
    command
        .add_option("--write", o.write_percent,
                    "percent of the requests that write zeroes, needs --destroy-data; default 0")
        ->check(CLI::Range(0, 100));
    command.add_flag("--destroy-data", o.destroy_data,
                     "allow --write to overwrite what is on the disk");
}

result<std::string> bench_disk(const bench_options& o) {
    if (auto there = check_device(o.device); !there)
        return there.failure();
    bench::load_options l = o.load;
    l.read_percent = 100 - o.write_percent;
    try {
        if (o.cpu >= 0)
            bench::pin(o.cpu);
        const auto device = bench::connect(o.device, patience);
        const bench::load_result r = bench::load(*device, l).run();
        if (r.errors)
            return error{o.device + ": " + std::to_string(r.errors) + " of " +
                         std::to_string(r.all_requests) +
                         " requests ended with an error status; the server's log says why"};
        if (!o.as_json)
            return text_of(o, r);
        nlohmann::json out = bench::report(r, l);
        out["device"] = o.device;
        return out.dump(2) + "\n";
    } catch (const guest::timeout_error& e) {
        return error{o.device + ": " + e.what() + has_guest};
    } catch (const guest::disconnected& e) { // a second client is turned away
        return error{o.device + ": " + e.what() + has_guest};
    } catch (const guest::guest_error& e) {
        return error{o.device + ": " + e.what()};
    }
}

} // namespace vql
