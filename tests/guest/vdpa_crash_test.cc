// SPDX-License-Identifier: GPL-2.0-only
// Processes that are killed or stopped at bad instants, on vhost-vdpa devices. Hidden: cases of
// tests/vm run them, each by its name, and look at the machine before and afterwards.
#include "e2e.h"

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <csignal>
#include <cstring>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 16 << 20;
constexpr unsigned queues = 2;
constexpr unsigned depth = 16;

guest_options loaded_guest() {
    guest_options options;
    options.blk.queues = queues;
    options.blk.depth = depth;
    options.blk.interrupts = true;
    options.memory_bytes = 64 << 20;
    return options;
}

struct one_disk {
    test_storage storage;
    test_daemon daemon;
    std::string path;
    one_disk() : daemon(configuration()), path(daemon.device("d")) {}
    std::string configuration() {
        storage.add("t", disk_bytes);
        return storage.targets() + storage.disk("d", "t", "queues = 2\n");
    }
};

// What VMMs that are killed leave to the next one.
struct legacy {
    std::atomic<uint64_t> done;
    std::atomic<bool> failed;
    std::array<char, 1000> why;
    std::array<intent, queues * depth> journal;
    std::array<std::byte, disk_bytes> model;
};

run_options journaled(legacy& left) {
    run_options options;
    options.journal = left.journal;
    return options;
}

// A VMM's whole life, but for its end.
[[noreturn]] void live_as_vmm(const std::string& path, legacy& left, uint64_t seed) {
    try {
        test_guest guest(path, loaded_guest());
        model_run run(guest.driver, left.model, seed, journaled(left));
        run.settle_lost();
        for (;;) {
            run.start(uint64_t{1} << 40);
            run.step();
            left.done = run.counts().total();
        }
    } catch (const std::exception& error) {
        std::strncpy(left.why.data(), error.what(), left.why.size() - 1);
        left.failed = true;
    }
    _exit(1);
}

class vmm_process {
  public:
    vmm_process(const std::string& path, legacy& left, uint64_t seed) : left_(left) {
        left.done = 0;
        pid_ = fork();
        if (pid_ < 0) {
            throw_errno("fork");
        }
        if (pid_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            live_as_vmm(path, left, seed);
        }
    }
    vmm_process(const vmm_process&) = delete;
    vmm_process& operator=(const vmm_process&) = delete;
    ~vmm_process() { kill(); }

    // Until it has done so many requests.
    void wait_done(uint64_t requests) const {
        deadline until(default_timeout());
        while (left_.done < requests) {
            if (left_.failed) {
                throw guest_error(left_.why.data());
            }
            if (until.passed()) {
                throw timeout_error("the VMM has done only " + std::to_string(left_.done) +
                                    " requests");
            }
            usleep(500);
        }
    }
    void kill() {
        if (pid_ > 0) {
            ::kill(pid_, SIGKILL);
            waitpid(pid_, nullptr, 0);
        }
        pid_ = -1;
    }

  private:
    legacy& left_;
    pid_t pid_ = -1;
};

} // namespace

TEST_CASE("VMMs that are killed under load lose nothing that was acknowledged", "[.][vmm-killed]") {
    one_disk setup;
    mapping shared(make_memfd("legacy", sizeof(legacy)).get(), sizeof(legacy));
    legacy& left = *new (shared.bytes().data()) legacy{};
    random_source random(test_seed(1100));
    uint64_t in_flight = 0;
    for (uint64_t round = 0; round < std::max<uint64_t>(20, scaled(25)); round++) {
        INFO("round " << round);
        vmm_process vmm(setup.path, left, test_seed(1101 + round));
        vmm.wait_done(random.between(1, 300));
        usleep(static_cast<useconds_t>(random.below(3000)));
        if (round == 10) {
            let_case("while_in_use");
        }
        vmm.kill();
        REQUIRE_FALSE(left.failed);
        for (const intent& noted : left.journal) {
            in_flight += noted.active ? 1 : 0;
        }
    }
    CHECK(in_flight >= 20); // or they were not killed under load
    // The last VMM is this process.
    test_guest guest(setup.path, loaded_guest());
    model_run run(guest.driver, left.model, test_seed(1200), journaled(left));
    run.settle_lost();
    run.run(200);
    CHECK(compare_backing(left.model, {setup.storage.part("t")}) == disk_bytes);
    leave_for_case(left.model, setup.storage.part("t"));
}

// drain_ms is the module's parameter, which the case has made small.
TEST_CASE("a daemon that hangs holds nobody up for long, and goes on when it can",
          "[.][daemon-hangs]") {
    one_disk setup;
    test_guest guest(setup.path, loaded_guest());
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(1300));
    const milliseconds bound(8000); // drain_ms, and the controller's time to delete a queue pair
    constexpr uint64_t far = uint64_t{1} << 36;
    std::vector<std::byte> memory(64 << 10);
    for (unsigned round = 0; round < 8; round++) {
        INFO("round " << round);
        guest.vhost_vdpa().client().map(far, memory);
        run.run(20); // a map that changes makes the daemon let go, and come again: it has by now
        run.start(200);
        for (unsigned steps = 0; steps < 1 + round; steps++) {
            run.step();
        }
        size_t log_before = setup.daemon.log().size();
        REQUIRE(kill(setup.daemon.pid(), SIGSTOP) == 0);
        run.step(); // what the daemon does not see before it wakes up
        deadline until(bound);
        bool lost = true;
        switch (round % 4) {
        case 0: // rings and requests stay
            guest.vhost_vdpa().client().unmap(far, memory.size());
            lost = false;
            break;
        case 1:
            guest.device.set_status(0);
            guest.driver.start();
            break;
        case 2: // the VMM dies
            guest.device.disconnect();
            guest.device.reconnect();
            guest.driver.start();
            break;
        default: // it cannot be suspended, as nobody says what is done
            CHECK_THROWS_AS(guest.vhost_vdpa().client().suspend(), refused);
            guest.device.set_status(0);
            guest.driver.start();
            break;
        }
        CHECK_FALSE(until.passed());
        CHECK(guest.device.status() ==
              (status_acknowledge | status_driver | status_features_ok | status_driver_ok));
        REQUIRE(kill(setup.daemon.pid(), SIGCONT) == 0);
        if (lost) {
            run.settle_lost();
        }
        run.drain();
        run.run(40);
        CHECK(setup.daemon.wait_log("the kernel module took the guest's memory back", log_before));
        if (round % 2 == 1) { // a reset leaves the map alone
            guest.vhost_vdpa().client().unmap(far, memory.size());
        }
    }
    CHECK(compare_backing(model, {setup.storage.part("t")}) == disk_bytes);
}

} // namespace vql::guest
