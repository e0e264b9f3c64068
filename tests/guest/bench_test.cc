// SPDX-License-Identifier: GPL-2.0-only
// vqlane bench: what it says that it did is what the daemon counted, and it harms nobody.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

command_result bench(const std::string& device, std::vector<std::string> arguments,
                     const std::string& seconds = "0.1") {
    std::vector<std::string> all = {
        built_program("vqlane"), "bench", device, "--warmup", "0.02", "--seconds", seconds};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return run_command(all);
}

json ops_of(const test_daemon& daemon) {
    return daemon.control().result({{"op", "stats"}}).at("disks").at(0).at("ops");
}

std::string one_null_disk() {
    return null_target("n", "1G") + disk_on("d", "n", "queues = 2\n");
}

} // namespace

TEST_CASE("what bench says that it did is what the daemon counted", "[bench]") {
    const auto shape = GENERATE(std::vector<std::string>{"--depth", "1", "--queues", "1"},
                                std::vector<std::string>{"--depth", "128", "--queues", "2"},
                                std::vector<std::string>{"--direct", "--depth", "256"},
                                std::vector<std::string>{"--interrupts", "--queues", "2"},
                                std::vector<std::string>{"--sequential", "--block-size", "128K"},
                                std::vector<std::string>{"--write", "30", "--destroy-data"},
                                std::vector<std::string>{"--write", "100", "--destroy-data"});
    std::string line;
    for (const std::string& word : shape) {
        line += word + " ";
    }
    INFO(line);
    test_daemon daemon(one_null_disk());
    std::vector<std::string> arguments = shape;
    arguments.insert(arguments.end(), {"--json", "--server-pid", std::to_string(daemon.pid())});
    command_result done = bench(daemon.device("d"), arguments);
    INFO(done.err);
    REQUIRE(done.status == 0);
    json said = json::parse(done.out);
    json ops = ops_of(daemon);
    const uint64_t all = said.at("all_requests").get<uint64_t>();
    const uint64_t reads = ops.at("read").at("requests").get<uint64_t>();
    const uint64_t writes = ops.at("write").at("requests").get<uint64_t>();
    CHECK(reads + writes == all);
    const uint64_t block = line.find("128K") == std::string::npos ? 4096 : 128 << 10;
    CHECK(ops.at("read").at("bytes") == reads * block);
    CHECK(ops.at("write").at("bytes") == writes * block);
    CHECK((line.find("--write") == std::string::npos) == (writes == 0));
    CHECK((line.find("100") != std::string::npos) == (reads == 0));

    const uint64_t measured = said.at("requests").get<uint64_t>();
    CHECK(measured > 0);
    CHECK(measured < all);
    uint64_t in_histogram = 0;
    for (const json& bucket : said.at("histogram")) {
        in_histogram += bucket.at(1).get<uint64_t>();
    }
    CHECK(in_histogram == measured);
    const json& latency = said.at("latency_ns");
    CHECK(latency.at("p50") <= latency.at("p99"));
    CHECK(latency.at("p99") <= latency.at("p999"));
    CHECK(latency.at("p999") <= latency.at("max"));
    CHECK(latency.at("avg") <= latency.at("max"));
    // Few requests may all have been answered since the kernel last added up.
    if (measured > 1000) {
        CHECK(said.at("server_cpu_ns_per_request").get<double>() > 0);
    }
    CHECK(said.at("answers_per_look").get<double>() >= 1);
}

TEST_CASE("bench at depth 1: the average latency is what the rate says", "[bench]") {
    if (sanitized_build()) {
        SKIP("the driver's own part of the time is too large in a sanitizer build");
    }
    // By Little's law; a slow device, so that what passes between answer and request is little.
    test_storage storage;
    storage.add("t", 16 << 20);
    test_daemon daemon(storage.targets() + storage.disk("d", "t"));
    command_result done = bench(daemon.device("d"), {"--json", "--depth", "1"}, "0.5");
    INFO(done.err);
    REQUIRE(done.status == 0);
    json said = json::parse(done.out);
    const double product =
        said.at("latency_ns").at("avg").get<double>() * 1e-9 * said.at("iops").get<double>();
    INFO(done.out);
    CHECK(product > 0.8);
    CHECK(product < 1.05);
}

TEST_CASE("bench writes nothing unless it is told twice", "[bench]") {
    test_daemon daemon(one_null_disk());
    command_result refused = bench(daemon.device("d"), {"--write", "10"});
    CHECK(refused.status == 2);
    CHECK_THAT(refused.err, ContainsSubstring("--destroy-data"));
    CHECK(ops_of(daemon).at("read").at("requests") == 0);
    CHECK(bench(daemon.device("d"), {"--destroy-data"}).status == 0);
    json ops = ops_of(daemon);
    CHECK(ops.at("read").at("requests") > 0);
    CHECK(ops.at("write").at("requests") == 0);
}

TEST_CASE("bench prints a table for people", "[operator]") {
    test_daemon daemon(one_null_disk());
    command_result done = bench(daemon.device("d"), {"--queues", "2"});
    CHECK(done.status == 0);
    CHECK(done.err.empty());
    CHECK_THAT(done.out, ContainsSubstring("random reads of 4K, 2 queues of depth 32") &&
                             ContainsSubstring("IOPS") && ContainsSubstring("P99.9"));
}

TEST_CASE("bench fails when a request does", "[bench]") {
    test_storage storage;
    storage.add_file("t", 16 << 20);
    test_daemon daemon(file_target("t", storage.path("t")) + disk_on("d", "t"));
    REQUIRE(truncate(storage.path("t").c_str(), 1 << 20) == 0);
    command_result done = bench(daemon.device("d"), {});
    CHECK(done.status == 1);
    CHECK_THAT(done.err, ContainsSubstring("requests ended with an error"));
}

TEST_CASE("bench's refusals name the device and the reason", "[operator]") {
    test_storage storage;
    storage.add_file("plain", 4096);
    test_daemon daemon(one_null_disk());
    const std::string device = daemon.device("d");
    struct {
        std::string device;
        std::vector<std::string> arguments;
        int status;
        std::string names;
    } const table[] = {
        {"/nonexistent/d.sock", {}, 1, "/nonexistent/d.sock: No such file"},
        {storage.path("plain"), {}, 1, "neither a vhost-user socket"},
        {daemon.control_socket(), {}, 1, daemon.control_socket()},
        {device, {"--queues", "3"}, 1, "2 queues"},
        {device, {"--block-size", "1000"}, 1, "1000"},
        {device, {"--direct", "--depth", "1024"}, 1, "depth"},
        {device, {"--queues", "0"}, 2, "--queues"},
        {device, {"--cpu", "1000"}, 1, "CPU 1000"},
    };
    for (const auto& odd : table) {
        INFO(odd.device << " " << json(odd.arguments).dump());
        command_result result = bench(odd.device, odd.arguments);
        CHECK(result.status == odd.status);
        CHECK_THAT(result.err, ContainsSubstring(odd.names));
    }
    test_guest guest(device);
    command_result busy = bench(device, {});
    CHECK(busy.status == 1);
    CHECK_THAT(busy.err,
               ContainsSubstring(device) && (ContainsSubstring("is a guest connected") ||
                                             ContainsSubstring("busy"))); // a socket, a device node
    CHECK(guest.driver.flush().status == blk_ok);
}

} // namespace vql::guest
