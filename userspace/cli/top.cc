// SPDX-License-Identifier: GPL-2.0-only
#include "cli/top.h"

#include "base/histogram.h"
#include "cli/table.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <functional>
#include <optional>
#include <thread>

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
    return disk.is_null() ? 0 : sum_of(disk.at("lanes").at(lane), "requests");
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
    r.requests = delta("requests");
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

disk_rates total_of(const std::vector<disk_rates>& disks) {
    disk_rates sum;
    sum.name = "TOTAL";
    sum.lane = "-";
    for (const disk_rates& d : disks) {
        sum.requests += d.requests;
        sum.bytes += d.bytes;
        sum.errors += d.errors;
        sum.depth += d.depth;
        sum.seconds = d.seconds;
        for (size_t i = 0; i < sum.latency.size(); i++)
            sum.latency[i] += d.latency[i];
    }
    return sum;
}

std::string rates_table(const std::vector<disk_rates>& disks, size_t width) {
    table out({{"DISK", false, true},
               {"LANE"},
               {"IOPS", true},
               {"MB/s", true},
               {"P50", true},
               {"P99", true},
               {"P99.9", true},
               {"DEPTH", true},
               {"ERRORS", true}});
    for (const disk_rates& d : disks) {
        const double seconds = d.seconds > 0 ? d.seconds : 1; // of no disks at all
        std::vector<std::string> row = {d.name, d.lane,
                                        fixed(static_cast<double>(d.requests) / seconds, 0),
                                        fixed(static_cast<double>(d.bytes) / seconds * 1e-6, 1)};
        for (const double fraction : {0.5, 0.99, 0.999})
            row.push_back(d.requests ? human_duration(d.percentile_ns(fraction)) : "-");
        row.push_back(fixed(d.depth, 1));
        row.push_back(std::to_string(d.errors));
        out.add(std::move(row));
    }
    return out.text(width);
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

void top_view::order(std::vector<disk_rates>& disks) const {
    const auto key = [this](const disk_rates& d) -> uint64_t {
        switch (sort) {
        case 'i': return d.requests;
        case 'm': return d.bytes;
        case 'l': return d.requests ? d.percentile_ns(0.99) : 0;
        case 'e': return d.errors;
        default: return 0;
        }
    };
    std::stable_sort(disks.begin(), disks.end(), [&](const disk_rates& a, const disk_rates& b) {
        const uint64_t ka = key(a), kb = key(b);
        return ka != kb ? ka > kb : a.name < b.name;
    });
}

bool top_view::press(int key, size_t disks) {
    const size_t last = disks > shown ? disks - shown : 0;
    switch (key) {
    case 'n':
    case 'i':
    case 'm':
    case 'l':
    case 'e':
        sort = char(key);
        first = 0;
        return true;
    case keyboard::up:
    case 'k': first -= first > 0; break;
    case keyboard::down:
    case 'j': first++; break;
    case keyboard::page_up: first -= std::min(first, shown); break;
    case keyboard::page_down:
    case ' ': first += shown; break;
    case keyboard::home: first = 0; break;
    case keyboard::end: first = last; break;
    default: return false;
    }
    first = std::min(first, last);
    return true;
}

std::string top_screen(std::vector<disk_rates> disks, const heat_map& heat, top_view& view,
                       terminal_size size, bool colours) {
    constexpr size_t around = 3; // heading, totals, and the line at the end
    constexpr size_t least = 8;  // disks, so that there is a map as well

    view.order(disks);
    std::string map = heat.text(colours);
    size_t map_rows = size_t(std::count(map.begin(), map.end(), '\n'));
    const size_t room = size.rows > around ? size.rows - around : 1;
    if (map_rows && room < std::min(disks.size(), least) + map_rows) {
        map.clear();
        map_rows = 0;
    }
    view.shown = std::min(disks.size(), room - map_rows);
    view.first = std::min(view.first, disks.size() - view.shown);

    std::vector<disk_rates> rows = {total_of(disks)};
    const auto from = disks.begin() + std::ptrdiff_t(view.first);
    rows.insert(rows.end(), from, from + std::ptrdiff_t(view.shown));
    std::string end = std::to_string(disks.size()) + " disks";
    if (view.shown < disks.size())
        end = "disks " + std::to_string(view.first + 1) + " to " +
              std::to_string(view.first + view.shown) + " of " + std::to_string(disks.size());
    end += "; sort: n(ame) i(ops) m(b/s) l(atency) e(rrors), now " + std::string(1, view.sort) +
           "; q(uit)";
    return rates_table(rows, size.columns) + map + end.substr(0, size.columns);
}

namespace {

result<void> put(const std::string& text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout))
        return errno_error("cannot write the output", errno);
    return {};
}

// Until @until: what the keys ask for is drawn at once. False: quit.
result<bool> attend(keyboard& keys, clock::time_point until, size_t disks, top_view& view,
                    const std::function<result<void>()>& draw) {
    for (;;) { // keys are looked at also when the sample before took all the time
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - clock::now());
        const int key = keys.next(std::max(left, std::chrono::milliseconds(0)));
        if (key == 'q' || key == keyboard::quit)
            return false;
        if (key == keyboard::none && left.count() <= 0)
            return true;
        if (view.press(key, disks))
            if (auto ok = draw(); !ok)
                return ok.failure();
    }
}

} // namespace

result<void> top(client& daemon, const top_options& o) {
    const bool screen = can_redraw() && !o.as_json;
    const json request = {{"op", "stats"}, {"histograms", true}};
    std::optional<keyboard> keys;
    if (screen)
        keys.emplace();
    heat_map heat;
    top_view view = o.view;
    std::vector<disk_rates> rates;
    // To the top, then clear what follows: no flicker.
    const auto draw = [&] {
        return put("\033[H\033[J" +
                   top_screen(rates, heat, view, size_of_terminal(), may_colour()));
    };
    auto before = daemon.call(request);
    if (!before)
        return before.failure();
    clock::time_point before_at = clock::now(), next = before_at;
    for (uint64_t n = 0; !o.count || n < o.count; n++) {
        next +=
            std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(o.seconds));
        next = std::max(next, before_at); // a sample that took too long is not made up for
        if (keys) {
            auto on = attend(*keys, next, rates.size(), view, draw);
            if (!on)
                return on.failure();
            if (!*on)
                return put("\n");
        } else {
            std::this_thread::sleep_until(next);
        }
        auto now = daemon.call(request);
        if (!now)
            return now.failure();
        const clock::time_point now_at = clock::now();
        const double seconds = std::chrono::duration<double>(now_at - before_at).count();
        rates = rates_between(*before, *now, seconds);
        heat.add(rates);
        view.order(rates);
        auto ok = screen      ? draw()
                  : o.as_json ? put(rates_json(rates, seconds).dump() + "\n")
                              : put(rates_table(rates) + "\n");
        if (!ok)
            return ok;
        before = std::move(now);
        before_at = now_at;
    }
    return screen ? put("\n") : result<void>();
}

} // namespace vql
