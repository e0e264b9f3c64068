// SPDX-License-Identifier: GPL-2.0-only
// vqlane top: what each disk does now, from two samples of the daemon's statistics; and a map of
// the latencies of the last minute.
#pragma once

#include "base/result.h"
#include "cli/client.h"
#include "cli/terminal.h"

#include <array>
#include <cstdint>
#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>
#include <vqlane/stats.h>

namespace vql {

// One disk between two samples, over all operations.
struct disk_rates {
    std::string name;
    uint64_t requests = 0;
    uint64_t bytes = 0;
    uint64_t errors = 0;
    double depth =
        0; // requests under way, on average: the sum of their latencies over the interval
    std::string lane; // that served them: poll, kernel, both, or - when there were none
    double seconds = 0;
    std::array<__u64, VQL_LATENCY_BUCKETS> latency{}; // counts

    uint64_t percentile_ns(double fraction) const;
};

// From two answers to "stats" with histograms, @seconds apart. A disk that is new, or that began
// anew, has all its requests in the interval.
std::vector<disk_rates> rates_between(const nlohmann::json& before, const nlohmann::json& now,
                                      double seconds);
// All of them as one, named TOTAL.
disk_rates total_of(const std::vector<disk_rates>& disks);
// A row a disk, of at most @width characters (0: no matter).
std::string rates_table(const std::vector<disk_rates>& disks, size_t width = 0);
nlohmann::json rates_json(const std::vector<disk_rates>& disks, double seconds);

// How many requests were how slow, when: a column an interval, the newest on the right, a row for
// each power of two ns that occurs. The darkest cell is that with the most requests.
class heat_map {
  public:
    void add(const std::vector<disk_rates>& disks);
    // @colours: ANSI backgrounds; else characters. Empty while there were no requests.
    std::string text(bool colours) const;

  private:
    static constexpr size_t most_columns = 60;
    static constexpr size_t rows = 38;
    std::deque<std::array<uint64_t, rows>> columns_;
};

// What of all disks is on the screen, and in which order.
struct top_view {
    char sort = 'n';  // by name; i: IOPS, m: MB/s, l: P99 latency, e: errors, the most first
    size_t first = 0; // the row at the top
    size_t shown = 0; // rows that there was room for, when last drawn

    void order(std::vector<disk_rates>& disks) const;
    // Does what @key asks for (keyboard::key, or a sort's letter), and whether that was anything.
    // @disks: how many there are.
    bool press(int key, size_t disks);
};

// One screen of at most @size.rows lines: heading, totals, as many disks as there is room for, and
// the map beneath where it leaves room for eight of them. Moves @view to where there are disks.
std::string top_screen(std::vector<disk_rates> disks, const heat_map& heat, top_view& view,
                       terminal_size size, bool colours);

struct top_options {
    double seconds = 1;
    uint64_t count = 0; // samples; 0: until a signal
    bool as_json = false;
    top_view view;
};

// On a terminal a screen that keys steer, until q; elsewhere a table, or with as_json a line, for
// each interval.
result<void> top(client& daemon, const top_options& o);

} // namespace vql
