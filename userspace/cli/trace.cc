// SPDX-License-Identifier: GPL-2.0-only
#include "cli/trace.h"

#include "cli/table.h"
#include "ebpf/trace.h"

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <map>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace vql {

namespace {

using nlohmann::json;

constexpr std::array op_names = {"read",         "write",  "flush", "discard",
                                 "write_zeroes", "get_id", "other"};
static_assert(op_names.size() == VQL_OP_COUNT);

const char* status_name(uint8_t status) {
    switch (status) {
    case VQL_STATUS_OK: return "ok";
    case VQL_STATUS_IOERR: return "ioerr";
    case VQL_STATUS_UNSUPP: return "unsupp";
    default: return "?";
    }
}

const char* lane_name(uint8_t lane) {
    return lane == VQL_LANE_KERNEL ? "kernel" : "poll";
}

volatile sig_atomic_t stopped = 0;

// Signals end the trace, so that its sums are told.
void catch_signals() {
    struct sigaction action {};
    action.sa_handler = [](int) { stopped = 1; };
    sigaction(SIGINT, &action, nullptr); // without SA_RESTART: it ends the wait
    sigaction(SIGTERM, &action, nullptr);
}

// Which disk is in which slot, as the daemon says.
class disk_names {
  public:
    explicit disk_names(client& daemon) : daemon_(daemon) {}

    result<void> refresh() {
        auto list = daemon_.call({{"op", "disk_list"}});
        if (!list)
            return list.failure();
        names_.clear();
        asked_ = clock::now();
        for (const json& disk : *list)
            if (!disk.at("slot").is_null()) // it is served
                names_[disk.at("slot").get<uint32_t>()] = disk.at("name").get<std::string>();
        return {};
    }
    // As of a second ago at most: a slot that is given up is soon another disk's.
    std::string of(uint32_t slot) {
        const bool old = clock::now() - asked_ > std::chrono::seconds(1);
        if ((old || names_.count(slot) == 0) && !refresh())
            asked_ = clock::now(); // the daemon is busy, or gone: with the names that we have
        return names_.try_emplace(slot, "slot:" + std::to_string(slot)).first->second;
    }
    result<uint32_t> slot_of(const std::string& name) const {
        for (const auto& [slot, known] : names_)
            if (known == name)
                return slot;
        return error{"disk " + name + " does not exist"};
    }

  private:
    using clock = std::chrono::steady_clock;
    client& daemon_;
    std::map<uint32_t, std::string> names_;
    clock::time_point asked_;
};

} // namespace

const char* op_name(uint32_t op) {
    return op < op_names.size() ? op_names[op] : "?";
}

result<uint32_t> parse_op(const std::string& text) {
    std::string lower = text;
    for (char& c : lower)
        c = c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c;
    for (uint32_t op = 0; op < op_names.size() && !lower.empty(); op++)
        if (std::string(op_names[op]).starts_with(lower))
            return op; // "w" is write, the more frequent one
    return error{"\"" + text +
                 "\" is no operation, expected read, write, flush, discard, "
                 "write_zeroes, get_id or other"};
}

result<uint64_t> parse_duration(const std::string& text) {
    static constexpr std::array<std::pair<const char*, double>, 4> units = {
        {{"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}}};
    const error wrong{"\"" + text + "\" is no time, expected for instance 500us, 1ms or 2.5s"};
    if (text.empty() || text[0] < '0' || text[0] > '9')
        return wrong;
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    for (const auto& [unit, ns] : units)
        if (std::string_view(end) == unit && value * ns <= 1e15)
            return static_cast<uint64_t>(value * ns + 0.5);
    return wrong;
}

std::string trace_heading() {
    return "      TIME  DISK             QUEUE  OP                SECTOR     BYTES  STATUS  LANE   "
           "    TOTAL     RING    REMAP   DEVICE  COMPLETION\n";
}

std::string trace_line(const vql_trace_io& io, const std::string& disk) {
    const vql_trace_stages s = vql_trace_stages_of(&io);
    std::array<char, 256> text{};
    const auto duration = [](uint64_t ns) { return ns ? human_duration(ns) : std::string("-"); };
    std::snprintf(
        text.data(), text.size(),
        "%6llu.%03llu  %-15s  %5u  %-12s  %10llu  %8llu  %-6s  %-6s  %8s %8s %8s %8s  %10s\n",
        io.completed / 1000000000, io.completed / 1000000 % 1000, disk.c_str(), io.queue,
        op_name(io.op), io.sector, io.bytes, status_name(io.status), lane_name(io.lane),
        duration(s.total).c_str(), duration(s.ring).c_str(), duration(s.remap).c_str(),
        duration(s.device).c_str(), duration(s.completion).c_str());
    return text.data();
}

json trace_json(const vql_trace_io& io, const std::string& disk) {
    const vql_trace_stages s = vql_trace_stages_of(&io);
    return {{"time_ns", io.completed},
            {"disk", disk},
            {"slot", io.slot},
            {"queue", io.queue},
            {"head", io.head},
            {"op", op_name(io.op)},
            {"sector", io.sector},
            {"bytes", io.bytes},
            {"status", status_name(io.status)},
            {"lane", lane_name(io.lane)},
            {"target", io.target},
            {"stages_ns",
             {{"total", s.total},
              {"ring", s.ring},
              {"remap", s.remap},
              {"device", s.device},
              {"completion", s.completion}}}};
}

result<void> trace(client& daemon, const trace_options& o) {
    disk_names names(daemon);
    if (auto ok = names.refresh(); !ok)
        return ok;
    request_tracer::filter filter;
    filter.slower_than_ns = o.slower_than_ns;
    if (!o.disk.empty()) {
        auto slot = names.slot_of(o.disk);
        if (!slot)
            return slot.failure();
        filter.slot = *slot;
    }
    if (!o.op.empty()) {
        auto op = parse_op(o.op);
        if (!op)
            return op.failure();
        filter.op = *op;
    }
    uint64_t told = 0, dropped = 0; // so far
    const auto enough = [&] { return o.count && told >= o.count; };
    const pid_t pid = daemon.peer();
    auto tracer = request_tracer::open(pid, filter, [&](const vql_trace_io& io) {
        if (enough())
            return;
        const std::string disk = names.of(io.slot);
        const std::string line =
            o.as_json ? trace_json(io, disk).dump() + "\n" : trace_line(io, disk);
        std::fwrite(line.data(), 1, line.size(), stdout);
        told++;
    });
    if (!tracer)
        return tracer.failure();
    if (!(*tracer)->warning().empty())
        std::fprintf(stderr, "vqlane: %s\n", (*tracer)->warning().c_str());
    const auto tell_dropped = [&] {
        const uint64_t now = (*tracer)->dropped();
        if (now != dropped)
            std::fprintf(stderr, "vqlane: %llu requests dropped\n",
                         static_cast<unsigned long long>(now - dropped));
        dropped = now;
    };
    catch_signals();
    if (!o.as_json)
        std::fputs(trace_heading().c_str(), stdout);
    while (!stopped && !enough()) {
        if (std::fflush(stdout) != 0 || std::ferror(stdout))
            return errno_error("cannot write the output", errno);
        auto woken = (*tracer)->wait(200);
        if (!woken)
            return woken.failure();
        tell_dropped();
        if (kill(pid, 0) < 0 && errno == ESRCH)
            return error{"the daemon, process " + std::to_string(pid) + ", has ended"};
    }
    (*tracer)->finish();
    tell_dropped();
    if (o.as_json)
        std::printf("%s\n", json{{"requests", told}, {"dropped", dropped}}.dump().c_str());
    else
        std::fprintf(stderr, "vqlane: %llu requests, %llu dropped\n",
                     static_cast<unsigned long long>(told),
                     static_cast<unsigned long long>(dropped));
    if (std::fflush(stdout) != 0)
        return errno_error("cannot write the output", errno);
    return {};
}

} // namespace vql
