// SPDX-License-Identifier: GPL-2.0-only
#include "cli/top.h"

#include "base/histogram.h"
#include "cli/table.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <unistd.h>

#include <nlohmann/json.hpp>

namespace vql {

namespace {

using nlohmann::json;
using clock = std::chrono::steady_clock;

const json& disk_named(const json& sample, const json& name) {
    static const json none;
    if (!sample.is_null())
        for (const json& disk : sample.at("disks"))
            if (disk.at("name") == name)
                return disk;
    return none;
}

uint64_t sum_of(const json& ops, const char* key) {
    uint64_t sum = 0;
    for (const json& op : ops)
        sum += op.at(key).get<uint64_t>();
    return sum;
}

uint64_t count_of(const json& disk, const char* lane) {
    return disk.is_null() ? 0 : sum_of(disk.at("lanes").at(lane), "count");
}

// Did a counter go back? Then the disk is another one of the same name.
bool began_anew(const json& before, const json& now) {
    return count_of(before, "poll") > count_of(now, "poll") ||
           count_of(before, "kernel") > count_of(now, "kernel");
}

void add_buckets(disk_rates& to, const json& ops, bool subtract) {
    for (const json& op : ops) {
        const auto found = op.find("latency_buckets");
        if (found == op.end())
            continue; // none were counted
        for (size_t i = 0; i < to.latency.size(); i++) {
            const auto n = found->at(i).get<uint64_t>();
            to.latency[i] += subtract ? 0 - n : n;
        }
    }
}

disk_rates rates_of(const json& before, const json& now, double seconds) {
    const json& was = before.is_null() || began_anew(before, now) ? disk_named({}, {}) : before;
    const auto delta = [&](const char* key) {
        return sum_of(now.at("ops"), key) - (was.is_null() ? 0 : sum_of(was.at("ops"), key));
    };
    disk_rates r;
    r.name = now.at("name").get<std::string>();
    r.requests = delta("count");
    r.bytes = delta("bytes");
    r.errors = delta("errors");
    r.seconds = seconds;
    r.depth = static_cast<double>(delta("total_ns")) / (seconds * 1e9);
    const bool poll = count_of(now, "poll") > count_of(was, "poll");
    const bool kernel = count_of(now, "kernel") > count_of(was, "kernel");
    r.lane = poll && kernel ? "both" : poll ? "poll" : kernel ? "kernel" : "-";
    add_buckets(r, now.at("ops"), false);
    if (!was.is_null())
        add_buckets(r, was.at("ops"), true);
    return r;
}

// A cell's darkness, 0…9, of @n requests where the most are @most: by logarithm, so that the few
// slow ones are seen beside the many.
size_t shade(uint64_t n, uint64_t most) {
    if (!n)
        return 0;
    return 1 + (most > 1 ? size_t(8 * vql_log2(n) / std::max(1u, vql_log2(most))) : 8);
}

} // namespace

uint64_t disk_rates::percentile_ns(double fraction) const {
    return static_cast<uint64_t>(percentile(latency, latency_floor, fraction) + 0.5);
}

std::vector<disk_rates> rates_between(const json& before, const json& now, double seconds) {
    std::vector<disk_rates> all;
    for (const json& disk : now.at("disks"))
        all.push_back(rates_of(disk_named(before, disk.at("name")), disk, seconds));
    return all;
}

std::string rates_table(const std::vector<disk_rates>& disks) {
    table out({{"DISK"},
               {"LANE"},
               {"IOPS", true},
               {"MB/s", true},
               {"P50", true},
               {"P99", true},
               {"P99.9", true},
               {"DEPTH", true},
               {"ERRORS", true}});
    for (const disk_rates& d : disks) {
        std::vector<std::string> row = {d.name, d.lane,
                                        fixed(static_cast<double>(d.requests) / d.seconds, 0),
                                        fixed(static_cast<double>(d.bytes) / d.seconds * 1e-6, 1)};
        for (const double fraction : {0.5, 0.99, 0.999})
            row.push_back(d.requests ? human_duration(d.percentile_ns(fraction)) : "-");
        row.push_back(fixed(d.depth, 1));
        row.push_back(std::to_string(d.errors));
        out.add(std::move(row));
    }
    return out.text();
}

json rates_json(const std::vector<disk_rates>& disks, double seconds) {
    json list = json::array();
    for (const disk_rates& d : disks)
        list.push_back({{"name", d.name},
                        {"lane", d.lane},
                        {"requests", d.requests},
                        {"bytes", d.bytes},
                        {"errors", d.errors},
                        {"iops", static_cast<double>(d.requests) / d.seconds},
                        {"bytes_per_second", static_cast<double>(d.bytes) / d.seconds},
                        {"depth", d.depth},
                        {"latency_ns",
                         {{"p50", d.percentile_ns(0.5)},
                          {"p99", d.percentile_ns(0.99)},
                          {"p999", d.percentile_ns(0.999)}}}});
    return {{"seconds", seconds}, {"disks", list}};
}

void heat_map::add(const std::vector<disk_rates>& disks) {
    std::array<uint64_t, rows> column{};
    for (const disk_rates& d : disks)
        for (uint32_t i = 0; i < d.latency.size(); i++)
            column[std::min<size_t>(vql_log2(vql_latency_bucket_floor(i) | 1), rows - 1)] +=
                d.latency[i];
    columns_.push_back(column);
    if (columns_.size() > most_columns)
        columns_.pop_front();
}

std::string heat_map::text(bool colours) const {
    static constexpr const char* characters = " .:-=+*%#@";
    // Of the 256-colour palette: black, then from blue over red to yellow.
    static constexpr std::array<int, 10> palette = {0, 17, 18, 54, 90, 126, 161, 202, 214, 226};
    size_t low = rows, high = 0;
    uint64_t most = 0;
    for (const auto& column : columns_)
        for (size_t i = 0; i < rows; i++)
            if (column[i]) {
                low = std::min(low, i);
                high = std::max(high, i);
                most = std::max(most, column[i]);
            }
    std::string out;
    for (size_t i = high + 1; i-- > low;) { // the slowest on top
        std::string label = human_duration(1ull << i);
        out += std::string(label.size() < 8 ? 8 - label.size() : 0, ' ') + label + " |";
        for (const auto& column : columns_) {
            const size_t s = shade(column[i], most);
            out += colours ? "\033[48;5;" + std::to_string(palette[s]) + "m "
                           : std::string(1, characters[s]);
        }
        out += colours ? "\033[0m\n" : "|\n";
    }
    return out;
}

result<void> top(client& daemon, const top_options& o) {
    const bool terminal = ::isatty(STDOUT_FILENO) && !o.as_json;
    const bool colours = terminal && !std::getenv("NO_COLOR");
    const json request = {{"op", "stats"}, {"histograms", true}};
    heat_map heat;
    auto before = daemon.call(request);
    if (!before)
        return before.failure();
    clock::time_point before_at = clock::now(), next = before_at;
    for (uint64_t n = 0; !o.count || n < o.count; n++) {
        next +=
            std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(o.seconds));
        next = std::max(next, before_at); // a sample that took too long is not made up for
        std::this_thread::sleep_until(next);
        auto now = daemon.call(request);
        if (!now)
            return now.failure();
        const clock::time_point now_at = clock::now();
        const double seconds = std::chrono::duration<double>(now_at - before_at).count();
        const auto rates = rates_between(*before, *now, seconds);
        heat.add(rates);
        std::string text = o.as_json ? rates_json(rates, seconds).dump() : rates_table(rates);
        if (terminal) // to the top, then clear what follows: no flicker
            text = "\033[H\033[J" + text + "\n" + heat.text(colours);
        text += "\n"; // a JSON line's end, or between tables
        if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout))
            return errno_error("cannot write the output", errno);
        before = std::move(now);
        before_at = now_at;
    }
    return {};
}

} // namespace vql
