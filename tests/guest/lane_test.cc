// SPDX-License-Identifier: GPL-2.0-only
// The two lanes of a vDPA disk, and when a queue changes from one to the other. Hidden: run in the
// vDPA world, with [.lane].
#include "e2e.h"
#include "model_run.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 16 << 20;

struct lane_disk {
    test_storage storage;
    test_daemon daemon;

    explicit lane_disk(const std::string& lines) : daemon(configuration(lines)) {}
    std::string configuration(const std::string& lines) {
        if (!vdpa_world()) {
            SKIP("needs VQL_E2E=vdpa");
        }
        storage.add("t", disk_bytes);
        return "[daemon]\npromote_iops = 100\ndemote_iops = 20\n" + storage.targets() +
               storage.disk("d", "t", lines);
    }
    nlohmann::json lane(unsigned queue) {
        return daemon.control().result({{"op", "disk_list"}}).at(0).at("lanes").at(queue);
    }
    std::string lane_name(unsigned queue) { return lane(queue).at("lane").get<std::string>(); }
};

// Context switches of each of the process's threads, by thread.
std::map<std::string, uint64_t> switches(pid_t pid) {
    std::map<std::string, uint64_t> all;
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
        std::ifstream status(task.path() / "status");
        for (std::string word; status >> word;) {
            if (word.find("ctxt_switches:") != std::string::npos) {
                uint64_t n = 0;
                status >> n;
                all[task.path().filename()] += n;
            }
        }
    }
    return all;
}

} // namespace

TEST_CASE("a queue is a poller's while there is much to do, and the kernel's while there is little",
          "[.lane]") {
    lane_disk disk("lane = \"auto\"\n");
    guest_options options;
    options.blk.depth = 16;
    options.memory_bytes = 32 << 20;
    test_guest guest(disk.daemon.device("d"), options);
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(2000));
    for (unsigned round = 0; round < 3; round++) {
        INFO("round " << round);
        deadline rises(default_timeout());
        do {
            run.run(100);
        } while (disk.lane_name(0) != "poll" && !rises.passed());
        REQUIRE(disk.lane_name(0) == "poll");
        CHECK(disk.lane(0).at("why") == "much to do");
        const auto in_kernel = disk.lane(0).at("kernel_requests").get<uint64_t>();
        CHECK(in_kernel > 0);
        run.run(300); // and these are the poller's
        CHECK(disk.lane(0).at("kernel_requests") == in_kernel);
        deadline falls(default_timeout());
        do {
            run.run(1);
            usleep(200000);
        } while (disk.lane_name(0) != "kernel" && !falls.passed());
        REQUIRE(disk.lane_name(0) == "kernel");
        run.run(5);
        CHECK(disk.lane(0).at("kernel_requests").get<uint64_t>() > in_kernel);
    }
}

TEST_CASE("no thread of the daemon runs for a request in the kernel lane", "[.lane]") {
    lane_disk disk("lane = \"kernel\"\n");
    test_guest guest(disk.daemon.device("d"));
    REQUIRE(guest.driver.flush().status == blk_ok);
    sleep(2);
    const auto before = switches(disk.daemon.pid());
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::byte> block(4096);
    constexpr unsigned requests = 200;
    for (unsigned i = 0; i < requests; i++) {
        REQUIRE(guest.driver.read(8 * i, block).status == blk_ok);
    }
    const auto after = switches(disk.daemon.pid());
    const auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - start);
    REQUIRE(after.size() == before.size());
    CHECK(disk.lane(0).at("kernel_requests").get<uint64_t>() > requests);
    for (const auto& [thread, count] : after) {
        INFO("thread " << thread);
        // The control thread looks after things once a second, requests or not.
        const bool control = thread == std::to_string(disk.daemon.pid());
        CHECK(count - before.at(thread) <= (control ? 2 * uint64_t(seconds.count()) + 2 : 0));
    }
}

TEST_CASE("a daemon is killed under load while the kernel has its queues, and comes back",
          "[.lane]") {
    const std::string mode = GENERATE("kernel", "auto");
    lane_disk disk("queues = 2\nlane = \"" + mode + "\"\n");
    guest_options options;
    options.blk.queues = 2;
    options.blk.depth = 24;
    options.memory_bytes = 256 << 20;
    test_guest guest(disk.daemon.device("d"), options);
    std::vector<std::byte> model(disk_bytes);
    random_source random(test_seed(2011));
    run_options small; // what the kernel lane serves without anybody's help
    small.max_bytes = 4096;
    small.discard = small.write_zeroes = false;
    small.layout.misaligned = false;
    small.layout.max_pieces = 1;
    run_options mix;
    mix.max_bytes = 1 << 20; // what it cannot serve goes to the daemon, and the queue with it
    model_run run(guest.driver, model, test_seed(2010), mix);
    uint64_t in_kernel = 0;
    for (uint64_t round = scaled(20, 10); round > 0; round--) {
        INFO("lane " << mode << ", " << round << " rounds to go");
        run.set_options(random.below(2) ? mix : small);
        run.start(uint64_t{1} << 40);
        for (uint64_t steps = random.between(1, 60); steps > 0; steps--) {
            run.step();
        }
        usleep(static_cast<useconds_t>(random.below(500)));
        in_kernel += disk.lane(0).at("kernel_requests").get<uint64_t>() != 0;
        disk.daemon.kill();
        // Queues in the kernel lane go on, as far as they can.
        for (uint64_t steps = random.between(0, 20); steps > 0; steps--) {
            run.step();
        }
        disk.daemon.start();
        guest.daemon_is_back();
        // A completion of what is not in flight throws; what never completes times out.
        run.drain();
    }
    CHECK(in_kernel > 0);
    run.run(100);
    CHECK(compare_backing(model, {disk.storage.part("t")}) == disk_bytes);
}

} // namespace vql::guest
