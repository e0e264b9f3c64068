// SPDX-License-Identifier: GPL-2.0-only
// The operator's command, and statistics that are exactly the I/O that was done.
#include "e2e.h"

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

struct cli {
    const daemon_process& daemon;

    command_result operator()(std::vector<std::string> arguments) const {
        std::vector<std::string> all = {built_program("vqlane"), "--socket",
                                        daemon.control_socket()};
        all.insert(all.end(), arguments.begin(), arguments.end());
        return run_command(all);
    }
    json as_json(std::vector<std::string> arguments) const {
        arguments.insert(arguments.begin(), "--json");
        command_result result = (*this)(std::move(arguments));
        INFO(result.err);
        REQUIRE(result.status == 0);
        return json::parse(result.out);
    }
};

const json& disk_named(const json& list, const std::string& name) {
    for (const json& disk : list) {
        if (disk.at("name") == name) {
            return disk;
        }
    }
    throw guest_error("no disk " + name + " in " + list.dump());
}

void check_counts(const json& ops, const run_counts& counts) {
    struct {
        const char* op;
        op_counts done;
    } const table[] = {{"read", counts.read},
                       {"write", counts.write},
                       {"flush", counts.flush},
                       {"discard", counts.discard},
                       {"write_zeroes", counts.write_zeroes}};
    for (const auto& entry : table) {
        INFO(entry.op);
        const json& figures = ops.at(entry.op);
        CHECK(figures.at("requests") == entry.done.count);
        CHECK(figures.at("bytes") == entry.done.bytes);
        CHECK(figures.at("errors") == 0);
        const json& latency = figures.at("latency_ns");
        if (entry.done.count != 0) {
            CHECK(latency.at("avg").get<double>() > 0);
            CHECK(latency.at("p50") <= latency.at("p99"));
            CHECK(latency.at("p99") <= latency.at("p999"));
            CHECK(latency.at("max").get<double>() > 0);
            CHECK(figures.at("size_bytes").at("p50") <= figures.at("size_bytes").at("p99"));
        }
    }
    CHECK(ops.at("get_id").at("requests") == counts.get_id.count);
    CHECK(ops.at("other").at("requests") == 0);
}

constexpr uint64_t disk_bytes = 16 << 20;

std::string one_disk(test_storage& storage) {
    storage.add("t", disk_bytes);
    return storage.targets() + storage.disk("d", "t", "queues = 2\n");
}

} // namespace

TEST_CASE("stats are exactly the requests and bytes that were done, over queues, clients and "
          "pollers",
          "[cli]") {
    test_storage storage;
    std::string config = one_disk(storage);
    if (sysconf(_SC_NPROCESSORS_ONLN) >= 2) {
        config = "[daemon]\npollers = [0, 1]\n" + config;
    }
    test_daemon daemon(config);
    cli vqlane{daemon};
    std::vector<std::byte> model(disk_bytes);
    run_counts sum;
    for (int client = 0; client < 2; client++) {
        guest_options options;
        options.blk.queues = 2;
        options.blk.depth = 16;
        test_guest guest(daemon.device("d"), options);
        model_run run(guest.driver, model, test_seed(900 + static_cast<uint64_t>(client)));
        run.run(scaled(500, 100));
        // What is used is counted before its queue has stopped.
        guest.driver.stop();
        const run_counts& done = run.counts();
        for (auto [to, from] : {std::pair{&sum.read, &done.read},
                                {&sum.write, &done.write},
                                {&sum.flush, &done.flush},
                                {&sum.discard, &done.discard},
                                {&sum.write_zeroes, &done.write_zeroes},
                                {&sum.get_id, &done.get_id}}) {
            to->count += from->count;
            to->bytes += from->bytes;
        }
        json stats = vqlane.as_json({"stats", "d"});
        REQUIRE(stats.at("disks").size() == 1);
        CHECK(stats.at("disks")[0].at("name") == "d");
        check_counts(stats.at("disks")[0].at("ops"), sum);
        uint64_t polled = 0, in_kernel = 0;
        for (const json& poller : stats.at("pollers")) {
            polled += poller.at("requests").get<uint64_t>();
        }
        for (const auto& [op, figures] : stats.at("disks")[0].at("lanes").at("kernel").items()) {
            in_kernel += figures.at("requests").get<uint64_t>();
        }
        CHECK(polled + in_kernel == sum.total());
        CHECK((in_kernel > 0) == (lane() == "kernel"));
    }
}

TEST_CASE("errors are counted as such, with no bytes", "[cli]") {
    test_storage storage;
    test_daemon daemon(one_disk(storage));
    test_guest guest(daemon.device("d"));
    std::vector<std::byte> data(4096);
    for (int i = 0; i < 3; i++) {
        guest.driver.read(disk_bytes / sector_bytes, data);
        guest.driver.write(disk_bytes / sector_bytes, data);
    }
    guest.driver.read(0, data);
    guest.driver.stop();
    json ops = cli{daemon}.as_json({"stats"}).at("disks")[0].at("ops");
    CHECK(ops.at("read").at("requests") == 4);
    CHECK(ops.at("read").at("errors") == 3);
    CHECK(ops.at("read").at("bytes") == 4096);
    CHECK(ops.at("write").at("errors") == 3);
    CHECK(ops.at("write").at("bytes") == 0);
}

TEST_CASE("disk add, list, resize and rm do what they say", "[cli]") {
    test_storage storage;
    storage.add_file("t", disk_bytes); // grows below
    test_daemon daemon(storage.targets() + storage.disk("d", "t", "queues = 2\n") +
                       null_target("n", "1G"));
    cli vqlane{daemon};
    make_file(storage.path("file"), 64 << 20);

    json list = vqlane.as_json({"disk", "list"});
    REQUIRE(list.size() == 1);
    const json& d = disk_named(list, "d");
    CHECK(d.at("size") == disk_bytes);
    CHECK(d.at("read_only") == false);
    CHECK(d.at("queues") == 2);
    CHECK(d.at("queue_size") == 1024);
    CHECK(d.at(vdpa_world() ? "device" : "socket") == daemon.device("d"));
    CHECK(d.at("connected") == false);
    CHECK(d.at("queues_running") == 0);
    CHECK(d.at("pollers").size() >= 1);
    CHECK(d.at("targets") == json({"t"}));
    CHECK(d.at("chunk_size").get<uint64_t>() >= 65536);

    std::string socket = daemon.run_dir() + "/elsewhere";
    REQUIRE(vqlane({"disk", "add", "f", "--file", storage.path("file"), "--size", "32M", "--queues",
                    "3", "--queue-size", "128", "--read-only", "--no-discard", "--vhost-socket",
                    socket, "--socket-mode", "0666"})
                .status == 0);
    json f = disk_named(vqlane.as_json({"disk", "list"}), "f");
    CHECK(f.at("size") == 32 << 20);
    CHECK(f.at("read_only") == true);
    CHECK(f.at("discard") == false);
    CHECK(f.at("queues") == 3);
    CHECK(f.at("queue_size") == 128);
    CHECK(f.at("socket") == socket);

    REQUIRE(vqlane({"disk", "add", "x", "--extent", "n:512M:64M", "--extent", "n:0:64M",
                    "--chunk-size", "64K"})
                .status == 0);
    json x = disk_named(vqlane.as_json({"disk", "list"}), "x");
    CHECK(x.at("size") == 128 << 20);
    CHECK(x.at("chunk_size") == 65536);
    CHECK(x.at("targets") == json({"n"}));

    std::future<int> removed; // ends no later than the guest
    {
        test_guest guest(daemon.device("d"));
        CHECK(guest.driver.flush().status == blk_ok);
        CHECK(disk_named(vqlane.as_json({"disk", "list"}), "d").at("connected") == true);
        CHECK(disk_named(vqlane.as_json({"disk", "list"}), "d").at("queues_running") == 1);
        CHECK_THAT(vqlane({"stats"}).out, ContainsSubstring("flush"));
        command_result refused_rm = vqlane({"disk", "rm", "d"});
        CHECK(refused_rm.status == 1);
        CHECK_THAT(refused_rm.err, ContainsSubstring("d") && ContainsSubstring("--force"));
        CHECK(guest.driver.flush().status == blk_ok);

        REQUIRE(vqlane({"disk", "resize", "d", "32M"}).status == 0);
        CHECK(guest.device.wait_config_change(default_timeout()));
        CHECK(guest.driver.capacity() == (32 << 20) / sector_bytes);
        command_result shrink = vqlane({"disk", "resize", "d", "1M"});
        CHECK(shrink.status == 1);
        CHECK_THAT(shrink.err, ContainsSubstring("shrink"));

        removed = std::async(std::launch::async, [&vqlane] {
            return vqlane({"disk", "rm", "d", "--force"}).status;
        });
        CHECK(guest.disk_lost());
    }
    CHECK(removed.get() == 0);
    CHECK(vqlane.as_json({"disk", "list"}).size() == 2);

    command_result table = vqlane({"disk", "list"});
    CHECK(table.status == 0);
    CHECK_THAT(table.out, ContainsSubstring("f") && ContainsSubstring("32"));
}

TEST_CASE("the command's errors name the thing and the fix, with status 1; misuse has status 2",
          "[operator]") {
    test_daemon daemon(null_target("n", "1G") + disk_on("d", "n"));
    cli vqlane{daemon};
    struct {
        std::vector<std::string> arguments;
        int status;
        const char* names;
    } const table[] = {
        {{"disk", "rm", "nosuch"}, 1, "nosuch"},
        {{"disk", "resize", "nosuch", "1G"}, 1, "nosuch"},
        {{"stats", "nosuch"}, 1, "nosuch"},
        {{"disk", "add", "d", "--file", "/dev/null"}, 1, "d"},
        {{"disk", "add", "e", "--target", "nosuch"}, 1, "nosuch"},
        {{"disk", "add", "e", "--file", "/nonexistent/x"}, 1, "/nonexistent/x"},
        {{"disk", "add", "e", "--target", "n", "--queues", "100"}, 1, "queues"},
        {{"disk", "add", "e", "--target", "n"}, 1, "d"},
        {{"disk", "add", "e"}, 2, "--target"},
        {{"disk", "add"}, 2, "NAME"},
        {{"disk", "add", "e", "--extent", "n:0"}, 2, "--extent"},
        {{"disk", "resize", "d", "lots"}, 2, "SIZE"},
        {{"disk", "resize", "d"}, 2, "SIZE"},
        {{"disk", "paint", "d"}, 2, "resize"},
        {{}, 2, ""},
        {{"--nonsense"}, 2, ""},
    };
    for (const auto& odd : table) {
        INFO(json(odd.arguments).dump());
        command_result result = vqlane(odd.arguments);
        CHECK(result.status == odd.status);
        CHECK_FALSE(result.err.empty());
        CHECK_THAT(result.err, ContainsSubstring(odd.names));
    }
    CHECK(vqlane.as_json({"disk", "list"}).size() == 1);

    command_result nobody =
        run_command({built_program("vqlane"), "--socket", "/nonexistent/control.sock", "stats"});
    CHECK(nobody.status == 1);
    CHECK_THAT(nobody.err, ContainsSubstring("/nonexistent/control.sock"));
}

TEST_CASE("stats --watch goes on until it is interrupted", "[cli]") {
    test_daemon daemon(null_target("n", "1G") + disk_on("d", "n"));
    test_guest guest(daemon.device("d"));
    REQUIRE(guest.driver.flush().status == blk_ok);
    temporary_directory out;
    child_process watch({built_program("vqlane"), "--socket", daemon.control_socket(), "stats", "d",
                         "--watch", "0.1"},
                        out / "out", out / "err");
    deadline until(default_timeout());
    auto samples = [&out] {
        std::string text = read_text_file(out / "out");
        size_t count = 0;
        for (size_t at = text.find("flush"); at != std::string::npos;
             at = text.find("flush", at + 1)) {
            count++;
        }
        return count;
    };
    while (samples() < 3 && !until.passed()) {
        usleep(10000);
    }
    CHECK(samples() >= 3);
    CHECK(watch.running());
    watch.send_signal(SIGINT);
    int status = watch.wait();
    CHECK((status == 0 || status == 128 + SIGINT));
    CHECK(read_text_file(out / "err") == "");
}

TEST_CASE("bpftool reads the same figures from the pinned map", "[cli][bpf]") {
    std::string bpftool = find_program("bpftool");
    if (bpftool.empty()) {
        SKIP("bpftool is not installed");
    }
    test_storage storage;
    test_daemon daemon(one_disk(storage));
    if (!daemon.bpf_refusal().empty()) {
        SKIP(daemon.bpf_refusal());
    }
    std::string pin = daemon.bpf_dir() + "/d/stats";
    if (!std::filesystem::exists(pin)) {
        // The daemon has probed, and has told why it goes without.
        std::string log = daemon.log();
        size_t at = log.find("BPF");
        REQUIRE(at != std::string::npos);
        SKIP("no BPF maps here: " + log.substr(at, log.find('\n', at) - at));
    }
    std::vector<std::byte> model(disk_bytes);
    guest_options options;
    options.blk.depth = 16;
    test_guest guest(daemon.device("d"), options);
    model_run run(guest.driver, model, test_seed(910));
    run.run(scaled(500, 100));
    guest.driver.stop();
    const run_counts& counts = run.counts();

    command_result dump = run_command({bpftool, "-j", "map", "dump", "pinned", pin});
    INFO(dump.err);
    REQUIRE(dump.status == 0);
    json figures = cli{daemon}.as_json({"stats", "d"}).at("disks")[0].at("ops");
    // Typed by BTF: each entry is the struct, by its members' names; operations in this order.
    static constexpr std::array names{"read",         "write",  "flush", "discard",
                                      "write_zeroes", "get_id", "other"};
    std::array<op_counts, names.size()> sums{};
    for (const json& entry : json::parse(dump.out)) {
        const json& value =
            entry.contains("formatted") ? entry.at("formatted").at("value") : entry.at("value");
        const json& op = value.at("op");
        REQUIRE(op.size() == names.size());
        for (size_t i = 0; i < names.size(); i++) {
            sums[i].count += op[i].at("count").get<uint64_t>();
            sums[i].bytes += op[i].at("bytes").get<uint64_t>();
        }
    }
    for (size_t i = 0; i < names.size(); i++) {
        INFO(names[i]);
        CHECK(figures.at(names[i]).at("requests") == sums[i].count);
        CHECK(figures.at(names[i]).at("bytes") == sums[i].bytes);
    }
    check_counts(figures, counts);

    // The extent table is there as well, and the pins go with the disk.
    CHECK(std::filesystem::exists(daemon.bpf_dir() + "/d/extents"));
    CHECK(run_command({bpftool, "-j", "map", "dump", "pinned", daemon.bpf_dir() + "/d/extents"})
              .status == 0);
    guest.device.disconnect();
    CHECK(cli{daemon}({"disk", "rm", "d"}).status == 0);
    CHECK_FALSE(std::filesystem::exists(daemon.bpf_dir() + "/d"));
    CHECK(daemon.terminate() == 0);
    CHECK_FALSE(std::filesystem::exists(daemon.bpf_dir() + "/tables"));
}

} // namespace vql::guest
