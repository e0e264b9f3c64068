// SPDX-License-Identifier: GPL-2.0-only
// What an operator sees of requests: each of them once, with all its bytes, in the order of its
// stages; with `vqlane trace`, `vqlane top`, and with nothing but bpftool.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

constexpr uint64_t disk_bytes = 16 << 20;

std::string one_disk(test_storage& storage) {
    storage.add("t", disk_bytes);
    return storage.targets() + storage.disk("d", "t", "queues = 2\n");
}

// vqlane with @arguments, until it is stopped.
struct running_command {
    temporary_directory out;
    child_process child;
    running_command(const test_daemon& daemon, const std::vector<std::string>& arguments)
        : child(whole(daemon, arguments), out / "out", out / "err") {}
    static std::vector<std::string> whole(const test_daemon& daemon,
                                          const std::vector<std::string>& arguments) {
        std::vector<std::string> all = {built_program("vqlane"), "--socket",
                                        daemon.control_socket(), "--json"};
        all.insert(all.end(), arguments.begin(), arguments.end());
        return all;
    }
    std::string errors() const { return read_text_file(out / "err"); }
    // The JSON objects printed so far, a line each.
    std::vector<json> lines() const {
        std::istringstream text(read_text_file(out / "out"));
        std::vector<json> all;
        for (std::string line; std::getline(text, line);) {
            if (const json one = json::parse(line, nullptr, false); one.is_object()) {
                all.push_back(one);
            }
        }
        return all;
    }
    // It is attached: only then does SIGINT end it with its sums.
    bool catches_interrupts() const {
        std::istringstream status(
            read_text_file("/proc/" + std::to_string(child.pid()) + "/status"));
        for (std::string line; std::getline(status, line);)
            if (line.starts_with("SigCgt:"))
                return std::stoull(line.substr(7), nullptr, 16) >> (SIGINT - 1) & 1;
        return false;
    }
    // Everything, when it was told to end.
    std::vector<json> stop() {
        const deadline until(default_timeout());
        while (child.running() && !catches_interrupts() && !until.passed())
            usleep(10000);
        child.send_signal(SIGINT);
        INFO(errors());
        REQUIRE(child.wait() == 0);
        return lines();
    }
};

// A trace that is known to be attached: flushes appear in it. Or the reason why it cannot be.
std::string wait_attached(running_command& trace, test_guest& guest) {
    const deadline until(default_timeout());
    while (trace.lines().empty()) {
        if (!trace.child.running()) {
            return trace.errors();
        }
        if (until.passed()) {
            throw timeout_error("no request is seen by vqlane trace");
        }
        REQUIRE(guest.driver.flush().status == blk_ok);
        usleep(50000);
    }
    return "";
}

// Where the kernel refuses tracing to everybody; our own mistakes are not skipped.
bool refused_by_kernel(const std::string& text) {
    return text.find("Operation not permitted") != std::string::npos ||
           text.find("Function not implemented") != std::string::npos ||
           text.find("Permission denied") != std::string::npos;
}

// Requests of this operation that the kernel lane has served. Of writes there are enough that it
// served some, if it may.
void check_lanes(const std::string& op, uint64_t in_kernel) {
    if (lane() != "kernel") {
        CHECK(in_kernel == 0);
    } else if (op == "write" || op == "VQL_OP_WRITE") {
        CHECK(in_kernel > 0);
    }
}

void check_traced(const std::vector<json>& lines, const char* op, const op_counts& done) {
    INFO(op);
    uint64_t count = 0, bytes = 0, in_kernel = 0;
    for (const json& line : lines) {
        if (line.value("op", "") != op) {
            continue;
        }
        count++;
        bytes += line.at("bytes").get<uint64_t>();
        const json& stages = line.at("stages_ns");
        INFO(line.dump());
        CHECK(line.at("status") == "ok");
        in_kernel += line.at("lane") == "kernel";
        CHECK(line.at("disk") == "d");
        CHECK(stages.at("device").get<uint64_t>() > 0);
        CHECK(stages.at("ring").get<uint64_t>() + stages.at("remap").get<uint64_t>() +
                  stages.at("device").get<uint64_t>() + stages.at("completion").get<uint64_t>() ==
              stages.at("total").get<uint64_t>());
    }
    CHECK(count == done.count);
    CHECK(bytes == done.bytes);
    check_lanes(op, in_kernel);
}

} // namespace

TEST_CASE("vqlane trace tells of each request once, with all its bytes", "[trace]") {
    test_storage storage;
    test_daemon daemon(one_disk(storage));
    std::vector<std::byte> model(disk_bytes);
    guest_options options;
    options.blk.depth = 16;
    test_guest guest(daemon.device("d"), options);
    running_command trace(daemon, {"trace", "--disk", "d"});
    if (const std::string why = wait_attached(trace, guest); !why.empty()) {
        INFO(why);
        REQUIRE(refused_by_kernel(why));
        SKIP(why);
    }
    model_run run(guest.driver, model, test_seed(920));
    run.run(scaled(500, 100));
    guest.driver.stop();
    const std::vector<json> lines = trace.stop();
    const run_counts& counts = run.counts();
    check_traced(lines, "read", counts.read);
    check_traced(lines, "write", counts.write);
    check_traced(lines, "discard", counts.discard);
    check_traced(lines, "write_zeroes", counts.write_zeroes);
    CHECK(lines.back() == json{{"requests", lines.size() - 1}, {"dropped", 0}});
}

TEST_CASE("what vqlane trace has no room for is counted: told and dropped are all requests",
          "[trace]") {
    constexpr uint64_t requests = 100000; // the buffer takes half of them
    test_daemon daemon(null_target("null", "1G") + disk_of("d", "target = \"null\"\n"));
    guest_options options;
    options.blk.depth = 32;
    test_guest guest(daemon.device("d"), options);
    blk_driver& driver = guest.driver;
    running_command trace(daemon, {"trace", "--op", "read"});
    std::vector<std::byte> sector(sector_bytes);
    const deadline until(default_timeout());
    while (trace.lines().empty() && trace.child.running() && !until.passed()) {
        REQUIRE(driver.read(0, sector).status == blk_ok);
        usleep(50000);
    }
    if (!trace.child.running()) {
        INFO(trace.errors());
        REQUIRE(refused_by_kernel(trace.errors()));
        SKIP(trace.errors());
    }
    const auto reads = [&] {
        const json stats = daemon.control().result({{"op", "stats"}});
        return stats.at("disks")[0]
            .at("lanes")
            .at("poll")
            .at("read")
            .at("requests")
            .get<uint64_t>();
    };
    const uint64_t before = reads();
    usleep(500000); // so that all until now was told
    const size_t lines_before = trace.lines().size();
    trace.child.send_signal(SIGSTOP);
    const uint64_t data = guest.memory->allocate(sector_bytes);
    for (uint64_t submitted = 0, done = 0; done < requests;) {
        for (blk_request* r; submitted < requests && (r = driver.acquire(0)); submitted++) {
            driver.shape(*r, blk_op::read, 0, data, sector_bytes);
            REQUIRE(driver.submit(*r));
        }
        driver.ring(0);
        for (blk_request* r = &driver.next(); r; r = driver.poll(0), done++) {
            driver.release(*r);
        }
    }
    CHECK(reads() == before + requests);
    trace.child.send_signal(SIGCONT);
    const std::vector<json> lines = trace.stop();
    const json last = lines.back();
    INFO(last.dump());
    CHECK(last.at("requests") == lines.size() - 1);
    const uint64_t told = lines.size() - 1 - lines_before;
    const auto dropped = last.at("dropped").get<uint64_t>();
    CHECK(told > 10000);
    CHECK(dropped > 10000);
    CHECK(told + dropped == requests);
    CHECK_THAT(trace.errors(), ContainsSubstring(std::to_string(dropped) + " requests dropped"));
}

TEST_CASE("vqlane trace tells only what was asked for", "[trace]") {
    test_storage storage;
    test_daemon daemon(one_disk(storage));
    test_guest guest(daemon.device("d"));
    running_command flushes(daemon, {"trace"});
    if (const std::string why = wait_attached(flushes, guest); !why.empty()) {
        INFO(why);
        REQUIRE(refused_by_kernel(why));
        SKIP(why);
    }
    running_command writes(daemon, {"trace", "--op", "W", "--count", "1"});
    running_command slow(daemon, {"trace", "--slower-than", "1000s"});
    std::vector<std::byte> block(4096);
    const deadline until(default_timeout());
    while (writes.child.running() && !until.passed()) { // it ends by itself
        REQUIRE(guest.driver.flush().status == blk_ok);
        REQUIRE(guest.driver.read(8, block).status == blk_ok);
        REQUIRE(guest.driver.write(16, block).status == blk_ok);
        usleep(20000);
    }
    CHECK(writes.child.wait() == 0);
    const std::vector<json> written = writes.lines();
    REQUIRE(written.size() == 2);
    CHECK(written[0].at("op") == "write");
    CHECK(written[0].at("sector") == 16);
    CHECK(written[0].at("bytes") == 4096);
    CHECK(slow.stop() == std::vector<json>{{{"requests", 0}, {"dropped", 0}}});
    CHECK(flushes.stop().size() > 3);

    const command_result unknown =
        run_command(running_command::whole(daemon, {"trace", "--disk", "other"}));
    CHECK(unknown.status == 1);
    CHECK_THAT(unknown.err, ContainsSubstring("disk other does not exist"));
}

TEST_CASE("a trace ends with its daemon", "[trace]") {
    test_storage storage;
    test_daemon daemon(one_disk(storage));
    test_guest guest(daemon.device("d"));
    running_command trace(daemon, {"trace"});
    if (const std::string why = wait_attached(trace, guest); !why.empty()) {
        INFO(why);
        REQUIRE(refused_by_kernel(why));
        SKIP(why);
    }
    CHECK(daemon.terminate() == 0);
    CHECK(trace.child.wait() == 1);
    CHECK_THAT(trace.errors(), ContainsSubstring("has ended"));
}

TEST_CASE("with nothing but bpftool: the sums of a traced disk are its I/O", "[trace][bpf]") {
    const std::string bpftool = find_program("bpftool");
    if (bpftool.empty()) {
        SKIP("bpftool is not installed");
    }
    test_storage storage;
    test_daemon daemon(one_disk(storage));
    if (!daemon.bpf_refusal().empty()) {
        SKIP(daemon.bpf_refusal());
    }
    std::vector<std::byte> model(disk_bytes);
    guest_options options;
    options.blk.depth = 16;
    test_guest guest(daemon.device("d"), options);
    const std::string pins = daemon.bpf_dir() + "/trace";
    const std::string folder = std::filesystem::path(built_program("vqlaned")).parent_path();
    const command_result loaded =
        run_command({"/usr/bin/env", "PATH=" + folder + ":" + std::getenv("PATH"), bpftool, "prog",
                     "loadall", folder + "/bpf/trace.bpf.o", pins, "autoattach", "pinmaps", pins});
    INFO(loaded.err);
    if (loaded.status != 0 && refused_by_kernel(loaded.err)) {
        SKIP(loaded.err);
    }
    REQUIRE(loaded.status == 0);
    // As bpftool shows a map with types: [{"key": {…}, "value": {…}}].
    const auto dump = [&](const std::string& map) {
        const command_result r =
            run_command({bpftool, "-j", "map", "dump", "pinned", pins + "/" + map});
        REQUIRE(r.status == 0);
        json entries = json::array();
        for (const json& e : json::parse(r.out)) {
            entries.push_back(e.contains("formatted") ? e.at("formatted") : e);
        }
        return entries;
    };
    const deadline until(default_timeout());
    while (dump("requests").empty()) { // the daemon looks for the pins once a second
        REQUIRE(guest.driver.flush().status == blk_ok);
        REQUIRE_FALSE(until.passed());
        usleep(50000);
    }
    running_command other(daemon, {"trace"}); // both at once
    CHECK(wait_attached(other, guest) == "");
    model_run run(guest.driver, model, test_seed(921));
    run.run(scaled(500, 100));
    guest.driver.stop();
    const run_counts& counts = run.counts();
    check_traced(other.stop(), "write", counts.write);
    const auto check_op = [&](const char* op, const op_counts& done) {
        INFO(op);
        uint64_t count = 0, bytes = 0, in_kernel = 0;
        for (const json& e : dump("requests")) {
            if (e.at("key").at("op") == op) {
                in_kernel += e.at("key").at("lane") == "VQL_LANE_KERNEL";
                CHECK(e.at("value").at("errors") == 0);
                count += e.at("value").at("count").get<uint64_t>();
                bytes += e.at("value").at("bytes").get<uint64_t>();
            }
        }
        CHECK(count == done.count);
        CHECK(bytes == done.bytes);
        check_lanes(op, in_kernel);
    };
    check_op("VQL_OP_READ", counts.read);
    check_op("VQL_OP_WRITE", counts.write);
    check_op("VQL_OP_DISCARD", counts.discard);
    check_op("VQL_OP_WRITE_ZEROES", counts.write_zeroes);
    uint64_t all = 0, total = 0;
    for (const json& e : dump("requests")) {
        all += e.at("value").at("count").get<uint64_t>();
    }
    for (const json& e : dump("latency")) {
        if (e.at("key").at("stage") == "VQL_STAGE_TOTAL") {
            for (const json& n : e.at("value").at("log2_ns")) {
                total += n.get<uint64_t>();
            }
            CHECK(e.at("value").at("count") == total);
        }
    }
    CHECK(total == all);
    // Detached by removing the pins: nobody is attached to the daemon's function any more.
    std::filesystem::remove_all(pins);
    CHECK_FALSE(std::filesystem::exists(pins));
}

TEST_CASE("vqlane top tells what stats tells, interval by interval", "[trace][cli]") {
    test_storage storage;
    test_daemon daemon(one_disk(storage));
    std::vector<std::byte> model(disk_bytes);
    guest_options options;
    options.blk.depth = 16;
    test_guest guest(daemon.device("d"), options);
    const auto done_before = daemon.control().result({{"op", "stats"}});
    running_command top(daemon, {"top", "--interval", "0.2"});
    const deadline until(default_timeout());
    while (top.lines().empty()) { // now it compares with a sample from before the I/O
        REQUIRE_FALSE(until.passed());
        usleep(20000);
    }
    model_run run(guest.driver, model, test_seed(922));
    run.run(scaled(500, 100));
    guest.driver.stop();
    const auto sums = [](const json& stats, const char* key) {
        uint64_t sum = 0;
        for (const json& op : stats.at("disks")[0].at("ops")) {
            sum += op.at(key).get<uint64_t>();
        }
        return sum;
    };
    const auto done = daemon.control().result({{"op", "stats"}});
    uint64_t requests = 0, bytes = 0;
    for (size_t seen = top.lines().size(); top.lines().size() < seen + 2;) {
        REQUIRE_FALSE(until.passed());
        usleep(20000);
    }
    bool in_its_lane = false;
    top.child.send_signal(SIGTERM);
    top.child.wait();
    for (const json& line : top.lines()) {
        const json& disk = line.at("disks").at(0);
        CHECK(disk.at("name") == "d");
        CHECK(disk.at("errors") == 0);
        CHECK(disk.at("latency_ns").at("p50") <= disk.at("latency_ns").at("p999"));
        in_its_lane |= disk.at("lane") == lane();
        requests += disk.at("requests").get<uint64_t>();
        bytes += disk.at("bytes").get<uint64_t>();
    }
    CHECK(in_its_lane);
    CHECK(requests == sums(done, "requests") - sums(done_before, "requests"));
    CHECK(bytes == sums(done, "bytes") - sums(done_before, "bytes"));
    // What a lane did is in its own place, and both make the whole.
    const json& lanes = done.at("disks")[0].at("lanes");
    const auto polled = lanes.at("poll").at("write").at("requests").get<uint64_t>(),
               in_kernel = lanes.at("kernel").at("write").at("requests").get<uint64_t>();
    CHECK(polled + in_kernel == run.counts().write.count);
    CHECK((in_kernel > 0) == (lane() == "kernel"));
}

} // namespace vql::guest
