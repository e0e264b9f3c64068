// SPDX-License-Identifier: GPL-2.0-only
// A guest whose discards are slow, and another one on the same drive. Hidden: the case
// slow-neighbour runs it, and says how fast the drive is.
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 32 << 20;
constexpr unsigned depth = 64;

std::string two_disks_on_one_drive() {
    std::string text = victim_target(0);
    for (unsigned n = 0; n < 2; n++) {
        text += disk_of(
            n ? "quick" : "slow",
            "extents = [ { target = \"victim0\", offset = " + std::to_string(n * disk_bytes) +
                ", length = " + std::to_string(disk_bytes) + " } ]\n" + (n ? "" : "queues = 2\n"));
    }
    return text;
}

guest_options discarding() {
    guest_options options;
    options.blk.queues = 2;
    options.blk.depth = depth;
    options.blk.queue_size = 256;
    return options;
}

// Keeps its queues full of write zeroes, which is what the drive throttles, until it is told to
// stop: with requests under way.
class discarding_guest {
  public:
    explicit discarding_guest(const std::string& path)
        : guest_(path, discarding()), thread_([this] { serve(); }) {}
    discarding_guest(const discarding_guest&) = delete;
    discarding_guest& operator=(const discarding_guest&) = delete;
    ~discarding_guest() { stop(); }

    uint64_t done() const { return done_; }
    void stop() {
        stop_ = true;
        if (thread_.joinable()) {
            thread_.join();
        }
    }
    void leave() { guest_.device.disconnect(); } // as by its VMM's death

  private:
    void fill() {
        for (unsigned queue = 0; queue < 2; queue++) {
            while (blk_request* request = guest_.driver.acquire(queue)) {
                guest_.driver.shape_range(*request, blk_op::write_zeroes,
                                          {next_++ % 16 * 2048, 2048, 0});
                guest_.driver.submit(*request);
            }
            guest_.driver.ring(queue);
        }
    }
    void serve() {
        while (!stop_) {
            fill();
            for (unsigned queue = 0; queue < 2; queue++) {
                while (blk_request* request = guest_.driver.poll(queue)) {
                    guest_.driver.release(*request);
                    done_++;
                }
            }
            usleep(1000);
        }
    }

    test_guest guest_;
    uint64_t next_ = 0;
    std::atomic<uint64_t> done_{0};
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

milliseconds time_of_read(test_guest& guest, uint64_t sector) {
    std::vector<std::byte> data(4096);
    const auto start = std::chrono::steady_clock::now();
    REQUIRE(guest.driver.read(sector, data).status == blk_ok);
    return std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - start);
}

} // namespace

TEST_CASE("a guest's slow discards cost its neighbour no more than the drive's time for a few",
          "[.][slow-neighbour]") {
    test_daemon daemon(two_disks_on_one_drive());
    test_guest quick(daemon.device("quick"));
    time_of_read(quick, 0);
    discarding_guest slow(daemon.device("slow"));
    for (deadline until(default_timeout()); slow.done() < 10 && !until.passed();) {
        usleep(10000);
    }
    REQUIRE(slow.done() >= 10);
    let_case("slow"); // 20 commands a second
    usleep(1000000);
    // 32 commands of the neighbour's are before each of ours: 1.6 s. 127 would be 6 s and more.
    milliseconds worst(0);
    for (unsigned i = 0; i < 5; i++) {
        worst = std::max(worst, time_of_read(quick, 8 * i));
    }
    CHECK(worst.count() < 4000);

    // It leaves, and what it has under way is given up, since the drive needs longer than drain_ms
    // (1 s) for it. The queue pair where the neighbour's commands are is not: without a daemon
    // nobody could serve it again.
    daemon.kill();
    slow.stop();
    auto leaves = std::async(std::launch::async, [&] { slow.leave(); });
    for (unsigned i = 0; i < 3; i++) {
        time_of_read(quick, 8 * i);
    }
    leaves.get();
    let_case("fast");
    for (unsigned i = 0; i < 100; i++) {
        time_of_read(quick, 8 * i);
    }
    daemon.start();
    quick.daemon_is_back();
    time_of_read(quick, 0);
}

} // namespace vql::guest
