// SPDX-License-Identifier: GPL-2.0-only
// Who takes a queue of a vDPA device over, or is told of another call descriptor, interrupts once,
// at once: nobody knows whether what was published before was signalled. And never again without
// need.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 16 << 20;
const milliseconds soon(3000);

struct quiet_guest {
    test_storage storage;
    test_daemon daemon;
    test_guest guest;
    virtqueue_driver& queue;

    explicit quiet_guest(const std::string& lane, bool event_idx)
        : daemon(configuration(lane)), guest(daemon.device("d"), options(event_idx)),
          queue(guest.driver.queue(0)) {
        flushes(1);
        signals(); // of the start
    }
    std::string configuration(const std::string& lane) {
        needs_vdpa_world();
        storage.add("t", disk_bytes);
        return storage.targets() + storage.disk("d", "t", "lane = \"" + lane + "\"\n");
    }
    static guest_options options(bool event_idx) {
        guest_options o;
        o.blk.event_idx = event_idx;
        return o;
    }
    // Requests whose driver wants no interrupt.
    void flushes(unsigned n) {
        for (unsigned i = 0; i < n; i++) {
            queue.disarm_interrupt();
            REQUIRE(guest.driver.flush().status == blk_ok);
        }
    }
    // All that come until there is silence.
    uint64_t signals(milliseconds first = milliseconds(200)) const {
        uint64_t all = take_eventfd(queue.call_fd(), deadline(first));
        for (uint64_t more = all; more;) {
            more = take_eventfd(queue.call_fd(), deadline(milliseconds(200)));
            all += more;
        }
        return all;
    }
};

} // namespace

TEST_CASE("a queue that begins again is signalled at once, and then as its driver says",
          "[.lane][.takeover]") {
    const std::string lane = GENERATE("kernel", "poll");
    const bool event_idx = GENERATE(false, true);
    INFO("lane " << lane << ", EVENT_IDX " << event_idx);
    quiet_guest quiet(lane, event_idx);
    vhost_vdpa_client& client = quiet.guest.vhost_vdpa().client();
    quiet.flushes(5);
    CHECK(quiet.signals() == 0);
    for (unsigned round = 0; round < 3; round++) {
        INFO("round " << round);
        client.suspend();
        quiet.signals(); // who leaves may signal, too
        client.resume();
        CHECK(quiet.signals(soon) > 0);
        // Neither is the first publication afterwards an exception.
        quiet.flushes(5);
        CHECK(quiet.signals() == 0);
    }
    quiet.daemon.kill();
    quiet.signals();
    quiet.daemon.start();
    quiet.guest.daemon_is_back();
    CHECK(quiet.signals(soon) > 0);
    quiet.flushes(5);
    CHECK(quiet.signals() == 0);
}

TEST_CASE("another call descriptor is signalled at once", "[.lane][.takeover]") {
    const std::string lane = GENERATE("kernel", "poll");
    INFO("lane " << lane);
    quiet_guest quiet(lane, true);
    const unique_fd other = make_eventfd();
    quiet.guest.device.set_call(0, std::nullopt);
    quiet.flushes(1); // as if its interrupt were wanted, and had gone to nobody
    quiet.guest.device.set_call(0, other.get());
    CHECK(take_eventfd(other.get(), deadline(soon)) > 0);
    quiet.flushes(3);
    CHECK(take_eventfd(other.get(), deadline(milliseconds(200))) == 0);
}

} // namespace vql::guest
