// SPDX-License-Identifier: GPL-2.0-only
// VMMs that wire a vDPA device's eventfds so that each answer is the next kick. Hidden: the case
// hostile-vmm runs them, since a module that falls for it takes the machine's CPUs.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <csignal>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 16 << 20;
constexpr uint16_t entries = 32;

enum class wiring {
    one_eventfd, // for both directions of a queue
    crosswise,   // each queue's interrupt is the other's kick
    at_resume,   // one eventfd, from a resume on
};

const char* name_of(wiring w) {
    switch (w) {
    case wiring::one_eventfd: return "one eventfd as kick and call";
    case wiring::crosswise: return "two queues, crosswise";
    default: return "one eventfd, since a resume";
    }
}

struct variant {
    wiring how;
    const char* lane;
};

void run_on(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0) {
        throw_errno("sched_setaffinity");
    }
}

// A queue whose used ring lies over its available ring: each answer that is published makes another
// request available. Whatever head it names, it is a GET_ID.
vring_setup endless_queue(guest_memory& memory, int kick, int call) {
    const uint64_t ring = memory.allocate_in_one_slot(used_ring_bytes(entries), 16);
    const uint64_t desc = memory.allocate_in_one_slot(desc_table_bytes(entries), 16);
    const uint64_t table = memory.allocate_in_one_slot(desc_table_bytes(3), 16);
    const uint64_t header = memory.allocate_in_one_slot(16, 16);
    const uint64_t id = memory.allocate_in_one_slot(id_bytes + 1, 16);
    const auto type = static_cast<uint32_t>(blk_op::get_id);
    std::memcpy(memory.at(header), &type, sizeof(type));
    auto* chain = memory.as<vring_descriptor>(table);
    chain[0] = {header, 16, desc_next, 1};
    chain[1] = {id, id_bytes, desc_next | desc_write, 2};
    chain[2] = {id + id_bytes, 1, desc_write, 0};
    for (uint16_t i = 0; i < entries; i++) {
        memory.as<vring_descriptor>(desc)[i] = {table, static_cast<uint32_t>(desc_table_bytes(3)),
                                                desc_indirect, 0};
    }
    memory.as<uint16_t>(ring)[1] = 1; // both indexes; the device goes on at 0, so one is there
    return {entries, desc, ring, ring, 0, kick, call, -1};
}

// A VMM's whole life, but for its end.
[[noreturn]] void live_as_vmm(const std::string& path, wiring how) {
    try {
        run_on(1);
        auto memory = guest_memory::in_pieces(0, 4 << 20, 1);
        vhost_vdpa_transport device(path);
        device.set_driver_features(bit(feature_version_1) | bit(feature_indirect));
        device.share_memory(*memory);
        const unique_fd bells[4] = {make_eventfd(), make_eventfd(), make_eventfd(), make_eventfd()};
        const int first = bells[0].get(), second = bells[1].get();
        std::vector<vring_setup> queues;
        switch (how) {
        case wiring::one_eventfd:
            queues.push_back(endless_queue(*memory, first, first));
            queues.push_back(endless_queue(*memory, second, second));
            break;
        case wiring::crosswise:
            queues.push_back(endless_queue(*memory, first, second));
            queues.push_back(endless_queue(*memory, second, first));
            break;
        case wiring::at_resume:
            queues.push_back(endless_queue(*memory, first, bells[2].get()));
            queues.push_back(endless_queue(*memory, second, bells[3].get()));
            break;
        }
        device.start_queues(queues);
        if (how == wiring::at_resume) {
            device.client().suspend();
            device.client().set_vring_call(0, first);
            device.client().set_vring_call(1, second);
            device.client().resume();
        }
        for (;;) {
            signal_eventfd(first);
            signal_eventfd(second);
            usleep(1000);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "hostile VMM: %s\n", error.what());
    }
    _exit(1);
}

class vmm_process {
  public:
    vmm_process(const std::string& path, wiring how) : pid_(fork()) {
        if (pid_ < 0) {
            throw_errno("fork");
        }
        if (pid_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            live_as_vmm(path, how);
        }
    }
    vmm_process(const vmm_process&) = delete;
    vmm_process& operator=(const vmm_process&) = delete;
    ~vmm_process() { end(milliseconds(0)); }

    // SIGKILL; true if it is gone within the time.
    bool end(milliseconds timeout) {
        if (pid_ <= 0) {
            return true;
        }
        ::kill(pid_, SIGKILL);
        for (deadline until(timeout);; usleep(10000)) {
            if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
                pid_ = -1;
                return true;
            }
            if (until.passed()) {
                return false;
            }
        }
    }
    bool lives() const { return waitpid(pid_, nullptr, WNOHANG) == 0; }

  private:
    pid_t pid_;
};

// What part of a CPU's time a thread of no priority gets there.
double share_of(int cpu, milliseconds time) {
    double share = 0;
    std::thread worker([&] {
        run_on(cpu);
        const auto start = std::chrono::steady_clock::now();
        while (std::chrono::steady_clock::now() - start < time) {
        }
        const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
        timespec used{};
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
        share = (double(used.tv_sec) + double(used.tv_nsec) / 1e9) / wall.count();
    });
    worker.join();
    return share;
}

} // namespace

TEST_CASE("a VMM whose interrupts are kicks takes no more than its share", "[.][hostile-vmm]") {
    const variant v =
        GENERATE(variant{wiring::one_eventfd, "kernel"}, variant{wiring::one_eventfd, "poll"},
                 variant{wiring::crosswise, "kernel"}, variant{wiring::at_resume, "kernel"},
                 variant{wiring::at_resume, "auto"});
    const std::string mode = v.lane;
    INFO(name_of(v.how) << ", lane " << mode);
    test_storage storage;
    storage.add("t", disk_bytes);
    storage.add("neighbour", disk_bytes);
    // In the lane "auto" queues go to a poller from so many requests a second on.
    test_daemon daemon("[daemon]\npromote_iops = 2000\ndemote_iops = 20\n" + storage.targets() +
                       storage.disk("d", "t", "queues = 2\nlane = \"" + mode + "\"\n") +
                       storage.disk("e", "neighbour", "lane = \"kernel\"\n"));
    const std::string path = daemon.device("d");
    bystander neighbour(daemon.device("e"), disk_bytes, test_seed(3100));
    {
        vmm_process vmm(path, v.how);
        // In lane "auto" the storm may be a poller's before the kernel has served that many.
        const auto storms = [&] {
            const auto lanes = daemon.entry("d").at("lanes");
            const auto in_kernel = lanes.at(0).at("kernel_requests").get<uint64_t>() +
                                   lanes.at(1).at("kernel_requests").get<uint64_t>();
            return in_kernel >= 1000 || (mode == "auto" && lanes.at(0).at("why") == "much to do");
        };
        if (mode != "poll") { // or it does not do what it is here for
            for (deadline until(default_timeout()); !storms() && !until.passed();) {
                usleep(10000);
            }
            CHECK(storms());
        }
        // A poller, or workers for both queues, may want as much.
        for (int cpu : {0, 1}) {
            INFO("CPU " << cpu);
            CHECK(share_of(cpu, milliseconds(2000)) > 0.15);
        }
        CHECK(neighbour.goes_on());
        CHECK(vmm.lives());
        CHECK(vmm.end(default_timeout()));
    }
    CHECK(neighbour.goes_on());
    CHECK(neighbour.stop().empty());
    guest_options options;
    options.blk.queues = 2;
    test_guest next(path, options);
    std::vector<std::byte> data(4096, std::byte{0x5a}), back(4096);
    REQUIRE(next.driver.write(8, data, 0).status == blk_ok);
    REQUIRE(next.driver.read(8, back, 1).status == blk_ok);
    CHECK(back == data);
}

} // namespace vql::guest
