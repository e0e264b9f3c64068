// SPDX-License-Identifier: GPL-2.0-only
// What a request costs while a disk is busy: neither a system call nor a copy. Hidden: [.steady] is
// for the vDPA world, and needs tracefs.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t drive_bytes = 32 << 20;
constexpr uint64_t file_bytes = 4 << 20;
constexpr uint64_t requests = 20000;

// The system calls of one thread, by the kernel's tracepoint, in a trace buffer of their own.
class syscall_trace {
  public:
    explicit syscall_trace(pid_t thread) {
        if (mkdir(folder_.c_str(), 0700) != 0) {
            throw_errno("cannot make " + folder_);
        }
        put("filter", "common_pid == " + std::to_string(thread));
        put("enable", "1");
    }
    syscall_trace(const syscall_trace&) = delete;
    syscall_trace& operator=(const syscall_trace&) = delete;
    ~syscall_trace() { rmdir(folder_.c_str()); }

    // Since the beginning, a line each.
    std::vector<std::string> calls() const {
        std::ifstream trace(folder_ + "/trace");
        std::vector<std::string> lines;
        for (std::string line; std::getline(trace, line);) {
            if (!line.starts_with("#") && !line.empty()) {
                lines.push_back(line);
            }
        }
        return lines;
    }

  private:
    void put(const char* file, const std::string& text) {
        const std::string path = folder_ + "/events/raw_syscalls/sys_enter/" + file;
        std::ofstream out(path);
        out << text << std::flush;
        if (!out) {
            throw_errno("cannot write '" + text + "' to " + path);
        }
    }

    const std::string folder_ = "/sys/kernel/tracing/instances/vqlane-test";
};

// The daemon's only poller.
pid_t poller_of(const test_daemon& daemon) {
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/" + std::to_string(daemon.pid()) + "/task")) {
        if (read_text_file(task.path() / "comm").starts_with("vqlane-")) {
            return std::stoi(task.path().filename());
        }
    }
    throw guest_error("the daemon has no poller");
}

struct figures {
    uint64_t requests, wakeups, sleeps, bounced = 0;

    explicit figures(const test_daemon& daemon) {
        const nlohmann::json stats = daemon.control().result({{"op", "stats"}});
        const nlohmann::json& poller = stats.at("pollers").at(0);
        requests = poller.at("requests");
        wakeups = poller.at("wakeups");
        sleeps = poller.at("sleeps");
        for (const nlohmann::json& disk : stats.at("disks")) {
            for (const nlohmann::json& op : disk.at("ops")) {
                bounced += op.at("bounced_bytes").get<uint64_t>();
            }
        }
    }
};

} // namespace

TEST_CASE("a busy disk on a drive makes no system call and copies no data", "[.steady]") {
    needs_vdpa_world();
    const bool event_idx = GENERATE(true, false);
    INFO("EVENT_IDX " << event_idx);
    test_storage storage;
    storage.add("t", drive_bytes);
    storage.add_file("f", file_bytes);
    // It stays awake over the moments in which the guest, on a CPU that it shares, does nothing.
    test_daemon daemon("[daemon]\nspin_us = 1000000\n" + storage.targets() +
                       storage.disk("d", "t") + storage.disk("f", "f"));
    const pid_t poller = poller_of(daemon);
    {
        bystander_options options;
        options.guest.memory_bytes = 64 << 20;
        options.guest.blk.depth = 64;
        options.guest.blk.event_idx = event_idx;
        options.guest.blk.interrupts = false;
        options.batch = 250;
        options.pause_us = 0;
        bystander load(daemon.device("d"), drive_bytes, test_seed(1100), options);
        REQUIRE(load.goes_on(1000));

        syscall_trace trace(poller);
        const figures before(daemon);
        REQUIRE(load.goes_on(requests + options.batch, milliseconds(180000)));
        const figures after(daemon);
        const std::vector<std::string> calls = trace.calls();
        INFO("the first: " << (calls.empty() ? "" : calls[0]));
        CHECK(calls.size() == 0);
        CHECK(after.requests - before.requests >= requests);
        CHECK(after.wakeups == before.wakeups);
        CHECK(after.sleeps == before.sleeps);
        // It was in the midst of it.
        REQUIRE(load.goes_on(1000));
        CHECK(load.stop() == "");
        CHECK(figures(daemon).bounced == 0);

        // It would have been seen: when there is no more to do, the poller waits in the kernel.
        usleep(2500000);
        CHECK(figures(daemon).sleeps > after.sleeps);
        CHECK(trace.calls().size() > 0);
    }
    // … and counted: the kernel cannot take such a guest's memory for a file, so that it is copied.
    test_guest guest(daemon.device("f"));
    std::vector<std::byte> data(64 << 10, std::byte{0x42});
    REQUIRE(guest.driver.write(0, data).status == blk_ok);
    CHECK(figures(daemon).bounced == data.size());
}

} // namespace vql::guest
