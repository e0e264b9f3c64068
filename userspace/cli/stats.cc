// SPDX-License-Identifier: GPL-2.0-only
#include "cli/stats.h"

#include "cli/table.h"
#include "cli/trace.h"

#include <map>
#include <optional>

#include <nlohmann/json.hpp>

namespace vql {

namespace {

using nlohmann::json;

uint64_t counter(const json& table, const char* key) {
    return table.at(key).get<uint64_t>();
}

// The entry of @list whose @key is that of @item; null: none.
const json& same_in(const json& list, const char* key, const json& item) {
    static const json none;

    for (const json& other : list)
        if (other.at(key) == item.at(key))
            return other;
    return none;
}

// How much of @key was added in a second. Nothing where there is no earlier sample, or where it is
// of an earlier life of the disk or the daemon: the counters went back.
std::optional<double> rate(const json& now, const json& before, const char* key, double seconds) {
    if (before.is_null() || seconds <= 0 || counter(now, key) < counter(before, key))
        return std::nullopt;
    return static_cast<double>(counter(now, key) - counter(before, key)) / seconds;
}

std::string rate_text(std::optional<double> value, double scale, int decimals) {
    return value ? fixed(*value * scale, decimals) : "-";
}

const json& member(const json& table, const char* key) {
    static const json none;

    return table.is_null() ? none : table.at(key);
}

void add_op(table& out, const std::string& disk, const char* name, const json& op, bool rates,
            const json& before, double seconds) {
    const json& latency = op.at("latency_ns");
    std::vector<std::string> row = {disk, name, std::to_string(counter(op, "requests"))};

    if (rates) {
        row.push_back(rate_text(rate(op, before, "requests", seconds), 1, 0));
        row.push_back(rate_text(rate(op, before, "bytes", seconds), 1e-6, 1));
    } else {
        row.push_back(human_size(counter(op, "bytes")));
    }
    for (const char* key : {"avg", "p50", "p99", "p999", "max"})
        row.push_back(human_duration(latency.at(key).get<uint64_t>()));
    row.push_back(std::to_string(counter(op, "errors")));
    out.add(std::move(row));
}

} // namespace

std::string op_table(const json& now, bool rates, const json& before, double seconds) {
    std::vector<column> columns = {{"DISK"}, {"OP"}, {"COUNT", true}};
    if (rates) {
        columns.push_back({"IOPS", true});
        columns.push_back({"MB/s", true});
    } else {
        columns.push_back({"BYTES", true});
    }
    for (const char* heading : {"AVG", "P50", "P99", "P99.9", "MAX", "ERRORS"})
        columns.push_back({heading, true});
    table out(columns);

    // In the order of `disk list`; the daemon's own is that in which they came.
    std::map<std::string, const json*> disks;
    for (const json& disk : now.at("disks"))
        disks[disk.at("name").get<std::string>()] = &disk;
    for (const auto& [name, entry] : disks) {
        const json& disk = *entry;
        const json& earlier = before.is_null() ? before : same_in(before.at("disks"), "name", disk);
        const json& ops = disk.at("ops");
        bool idle = true;
        for (uint32_t i = 0; i < VQL_OP_COUNT; i++) {
            const char* const op = op_name(i);
            if (!counter(ops.at(op), "requests"))
                continue;
            add_op(out, name, op, ops.at(op), rates, member(member(earlier, "ops"), op), seconds);
            idle = false;
        }
        if (idle)
            out.add({name, "-", "0"});
    }
    return out.text();
}

std::string poller_table(const json& now, bool rates, const json& before, double seconds) {
    table out({{"POLLER CPU", true},
               {"REQUESTS", true},
               {rates ? "IOPS" : "WAKEUPS", true},
               {rates ? "WAKEUPS/s" : "SLEEPS", true},
               {"BUSY", true}});

    for (const json& poller : now.at("pollers")) {
        const json& earlier =
            before.is_null() ? before : same_in(before.at("pollers"), "cpu", poller);
        std::vector<std::string> row = {std::to_string(counter(poller, "cpu")),
                                        std::to_string(counter(poller, "requests"))};
        if (rates) {
            const auto busy = rate(poller, earlier, "busy_ns", seconds);
            row.push_back(rate_text(rate(poller, earlier, "requests", seconds), 1, 0));
            row.push_back(rate_text(rate(poller, earlier, "wakeups", seconds), 1, 0));
            row.push_back(rate_text(busy, 1e-9 * 100, 1) + (busy ? "%" : ""));
        } else {
            row.push_back(std::to_string(counter(poller, "wakeups")));
            row.push_back(std::to_string(counter(poller, "sleeps")));
            row.push_back(human_duration(counter(poller, "busy_ns")));
        }
        out.add(std::move(row));
    }
    return out.text();
}

} // namespace vql
