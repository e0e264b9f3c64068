// SPDX-License-Identifier: GPL-2.0-only
#include "base/histogram.h"
#include "cli/top.h"
#include "cli/trace.h"
#include "daemon/stats.h"

#include <catch2/catch_test_macros.hpp>
#include <nlohmann/json.hpp>

namespace {

using nlohmann::json;

vql_trace_io traced() {
    vql_trace_io io{};
    io.slot = 3;
    io.queue = 1;
    io.op = VQL_OP_WRITE;
    io.lane = VQL_LANE_POLL;
    io.sector = 2048;
    io.bytes = 4096;
    io.fetched = 1'000'000'000;
    io.remapped = io.fetched + 300;
    io.submitted = io.remapped + 1'500;
    io.device_done = io.submitted + 80'000;
    io.completed = io.device_done + 700;
    return io;
}

TEST_CASE("a request's stages are all of its time, each part once", "[trace]") {
    vql_trace_io io = traced();
    vql_trace_stages s = vql_trace_stages_of(&io);
    CHECK(s.ring == 300);
    CHECK(s.remap == 1'500);
    CHECK(s.device == 80'000);
    CHECK(s.completion == 700);
    CHECK(s.total == 82'500);

    io.remapped = 0; // a FLUSH
    s = vql_trace_stages_of(&io);
    CHECK(s.ring == 1'800);
    CHECK(s.remap == 0);
    CHECK(s.ring + s.device + s.completion == s.total);

    io.submitted = io.device_done = 0; // answered where it was parsed
    s = vql_trace_stages_of(&io);
    CHECK(s.ring + s.remap + s.device + s.completion == 0);
    CHECK(s.total == 82'500);
}

TEST_CASE("a line and an object tell the same of a request", "[trace]") {
    const vql_trace_io io = traced();
    const std::string line = vql::trace_line(io, "vm1");
    const std::string heading = vql::trace_heading();
    CHECK(line == "     1.000  vm1                  1  write               2048      4096  ok      "
                  "poll      82.5us    300ns   1.50us   80.0us       700ns\n");
    CHECK(line.size() == heading.size()); // the columns are those of the heading
    CHECK(vql::trace_json(io, "vm1") ==
          json::parse(R"({"time_ns": 1000082500, "disk": "vm1", "slot": 3, "queue": 1, "head": 0,
              "op": "write", "sector": 2048, "bytes": 4096, "status": "ok", "lane": "poll",
              "target": 0, "stages_ns": {"total": 82500, "ring": 300, "remap": 1500,
              "device": 80000, "completion": 700}})"));
}

TEST_CASE("an operation is named by the beginning of its name", "[trace]") {
    const auto op = [](const char* text) { return vql::parse_op(text); };
    CHECK(*op("W") == VQL_OP_WRITE);
    CHECK(*op("write_z") == VQL_OP_WRITE_ZEROES);
    CHECK(*op("read") == VQL_OP_READ);
    CHECK(*op("d") == VQL_OP_DISCARD);
    for (const char* text : {"", "x", "writes", "read "})
        CHECK_FALSE(op(text));
    for (uint32_t i = 0; i < VQL_OP_COUNT; i++)
        CHECK(*vql::parse_op(vql::op_name(i)) == i);
    CHECK(std::string(vql::op_name(VQL_OP_COUNT)) == "?");
}

TEST_CASE("a time has a unit", "[trace]") {
    CHECK(*vql::parse_duration("1ms") == 1'000'000);
    CHECK(*vql::parse_duration("2.5us") == 2'500);
    CHECK(*vql::parse_duration("0ns") == 0);
    CHECK(*vql::parse_duration("3s") == 3'000'000'000);
    for (const char* text : {"", "1", "ms", "-1ms", "1 ms", "1m", "1msx", "1e30s", "nan", "infs"}) {
        INFO(text);
        CHECK_FALSE(vql::parse_duration(text));
    }
}

// An answer to "stats" with histograms: @reads of 4 KiB, each of 5000 ns, in @lane.
json sample(uint64_t reads, const char* lane) {
    vql_disk_stats s{};
    s.op[VQL_OP_READ].count = reads;
    s.op[VQL_OP_READ].bytes = reads * 4096;
    s.op[VQL_OP_READ].total_ns = reads * 5000;
    s.op[VQL_OP_READ].max_ns = 5000;
    s.op[VQL_OP_READ].latency[vql_latency_bucket(5000)] = reads;
    const json none = vql::disk_figures({});
    json lanes = {{"poll", none}, {"kernel", none}};
    lanes[lane] = vql::disk_figures(s);
    return {{"disks", {{{"name", "d"}, {"ops", vql::disk_figures(s, true)}, {"lanes", lanes}}}}};
}

TEST_CASE("rates are what two samples differ in", "[trace]") {
    const auto rates = vql::rates_between(sample(1000, "poll"), sample(3000, "poll"), 2);
    REQUIRE(rates.size() == 1);
    const vql::disk_rates& r = rates[0];
    CHECK(r.requests == 2000);
    CHECK(r.bytes == 2000 * 4096);
    CHECK(r.lane == "poll");
    CHECK(r.depth == 2000 * 5000 / 2e9);
    CHECK(r.latency[vql_latency_bucket(5000)] == 2000);
    for (const double fraction : {0.5, 0.99, 0.999}) {
        CHECK(r.percentile_ns(fraction) >= vql_latency_bucket_floor(vql_latency_bucket(5000)));
        CHECK(r.percentile_ns(fraction) <= vql_latency_bucket_floor(vql_latency_bucket(5000) + 1));
    }
    CHECK(vql::rates_table(rates) ==
          "DISK  LANE  IOPS  MB/s     P50     P99   P99.9  DEPTH  ERRORS\n"
          "d     poll  1000   4.1  4.61us  5.11us  5.12us    0.0       0\n");
    const json told = vql::rates_json(rates, 2);
    CHECK(told.at("disks")[0].at("iops") == 1000);
    CHECK(told.at("disks")[0].at("latency_ns").at("p50") == r.percentile_ns(0.5));
}

TEST_CASE("a disk that is new, began anew or was idle has the rates of what it did", "[trace]") {
    CHECK(vql::rates_between({{"disks", json::array()}}, sample(7, "poll"), 1)[0].requests == 7);
    CHECK(vql::rates_between(sample(9, "poll"), sample(7, "poll"), 1)[0].requests == 7);
    const auto idle = vql::rates_between(sample(7, "kernel"), sample(7, "kernel"), 1)[0];
    CHECK(idle.requests == 0);
    CHECK(idle.lane == "-");
    CHECK(vql::rates_between(sample(7, "kernel"), sample(8, "kernel"), 1)[0].lane == "kernel");
}

TEST_CASE("the heat map has a row for each power of two between the quickest and the slowest",
          "[trace]") {
    vql::disk_rates d;
    vql::heat_map map;
    CHECK(map.text(false).empty());
    d.latency[vql_latency_bucket(5000)] = 1000; // 4.10 us … 8.19 us
    map.add({d});
    d.latency[vql_latency_bucket(5000)] = 0;
    d.latency[vql_latency_bucket(20000)] = 1;
    map.add({d});
    CHECK(map.text(false) == "  16.4us | .|\n"
                             "  8.19us |  |\n"
                             "  4.10us |@ |\n");
    CHECK(map.text(true).find("\033[48;5;226m ") != std::string::npos);
    for (int i = 0; i < 100; i++)
        map.add({});
    CHECK(map.text(false).empty()); // what is older than the map is wide is forgotten
}

std::vector<vql::disk_rates> sixty_disks() {
    std::vector<vql::disk_rates> disks;
    for (unsigned i = 0; i < 60; i++) {
        vql::disk_rates d;
        d.name = "guest-with-a-long-name-" + std::to_string(100 + i);
        d.lane = "poll";
        d.seconds = 1;
        d.requests = i * 10;
        d.bytes = i * 4096;
        d.errors = 60 - i;
        if (i)
            d.latency[vql_latency_bucket(1000 * (60 - i))] = d.requests;
        disks.push_back(d);
    }
    return disks;
}

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    size_t at = 0;
    for (size_t end = 0; (end = text.find('\n', at)) != text.npos; at = end + 1)
        lines.push_back(text.substr(at, end - at));
    lines.push_back(text.substr(at));
    return lines;
}

TEST_CASE("a screen has heading, totals and as many disks as fit it, whatever its size",
          "[trace]") {
    const auto disks = sixty_disks();
    vql::heat_map heat;
    heat.add(disks);
    for (const auto& [rows, columns] : {std::pair<size_t, size_t>{24, 80}, {50, 200}, {10, 80}}) {
        vql::top_view view;
        const auto lines = lines_of(vql::top_screen(disks, heat, view, {rows, columns}, false));
        INFO(rows);
        CHECK(lines.size() <= rows);
        CHECK(lines.size() >= rows - 1);
        for (const std::string& line : lines)
            CHECK(line.size() <= columns);
        CHECK(lines[0].starts_with("DISK"));
        CHECK(lines[1].starts_with("TOTAL"));
        CHECK(lines[1].find(" 17700 ") != std::string::npos);
        CHECK(lines[1].ends_with(" 1830"));
        CHECK(lines[2].find("100 ") != std::string::npos);
        CHECK(lines.back().starts_with("disks 1 to " + std::to_string(view.shown) + " of 60"));
    }
    vql::top_view view; // no disks, and a terminal of one line
    CHECK(lines_of(vql::top_screen({}, heat, view, {1, 1}, false)).size() <= 24);
}

TEST_CASE("keys scroll a screen to all disks and no further, and sort it", "[trace]") {
    const auto disks = sixty_disks();
    vql::heat_map heat;
    vql::top_view view;
    const auto first_disk = [&] {
        return lines_of(vql::top_screen(disks, heat, view, {24, 80}, false))[2];
    };
    CHECK(first_disk().find("100 ") != std::string::npos);
    CHECK(view.press(vql::keyboard::down, 60));
    CHECK(first_disk().find("101 ") != std::string::npos);
    CHECK(view.press(vql::keyboard::page_down, 60));
    CHECK(first_disk().find("122 ") != std::string::npos);
    for (int i = 0; i < 100; i++)
        view.press(vql::keyboard::down, 60);
    CHECK(first_disk().find("139 ") != std::string::npos); // the last 21
    view.press(vql::keyboard::home, 60);
    CHECK(first_disk().find("100 ") != std::string::npos);
    view.press(vql::keyboard::up, 60);
    view.press(vql::keyboard::page_up, 60);
    CHECK(first_disk().find("100 ") != std::string::npos);
    view.press(vql::keyboard::end, 60);
    CHECK(first_disk().find("139 ") != std::string::npos);
    view.press('i', 60);
    CHECK(first_disk().find("159 ") != std::string::npos);
    view.press('e', 60);
    CHECK(first_disk().find("100 ") != std::string::npos);
    view.press('l', 60);
    CHECK(first_disk().find("101 ") != std::string::npos);
    view.press('m', 60);
    CHECK(first_disk().find("159 ") != std::string::npos);
    CHECK_FALSE(view.press('x', 60));
}

} // namespace
