// SPDX-License-Identifier: GPL-2.0-only
// What the end-to-end tests share: seeds and scale, a daemon that is checked at its end, a guest on
// a disk, and a bystander whose I/O must go on whatever is done to its neighbours.
#pragma once

#include "daemon_process.h"
#include "model_run.h"
#include "vhost_user_transport.h"

#include <atomic>
#include <exception>
#include <thread>

namespace vql::guest {

// $VQL_SEED, or a new one each run; printed once. salt tells uses in one test apart.
uint64_t test_seed(uint64_t salt = 0);
// n times $VQL_TEST_SCALE (less in a sanitizer build that sets none), but at least `least`.
uint64_t scaled(uint64_t n, uint64_t least = 1);

// A vqlaned that must be alive, and without a sanitizer's report, when the test is done with it.
class test_daemon : public daemon_process {
  public:
    using daemon_process::daemon_process;
    ~test_daemon() noexcept(false); // a failed check may throw (catch2 --abort)
};

// Pieces of the configuration.
std::string file_target(const std::string& name, const std::string& path);
std::string null_target(const std::string& name, const std::string& size);
// extra: further lines of the [[disk]] table.
std::string disk_on(const std::string& name, const std::string& target,
                    const std::string& extra = "");

struct guest_options {
    blk_options blk;
    vhost_user_options vhost;
    uint64_t memory_bytes = 64 << 20;
    unsigned slots = 1; // of equal size, adjacent
    uint64_t memory_base = 0;
    bool start = true;
};

// A guest with one disk.
struct test_guest {
    std::unique_ptr<guest_memory> memory;
    vhost_user_transport device;
    blk_driver driver;

    explicit test_guest(const std::string& socket, const guest_options& options = {});
};

// The parts of files that a disk is made of.
struct backing_extent {
    std::string path;
    uint64_t offset;
    uint64_t bytes;
};
// The first byte at which the files differ from the model, or model.size().
uint64_t compare_backing(const std::vector<std::byte>& model,
                         const std::vector<backing_extent>& extents);

// A guest on another disk, under verified I/O in a thread of its own.
class bystander {
  public:
    bystander(const std::string& socket, uint64_t disk_bytes, uint64_t seed);
    bystander(const bystander&) = delete;
    bystander& operator=(const bystander&) = delete;
    ~bystander();

    uint64_t done() const { return done_; }
    // True if `more` requests complete from now on, in time and without an error.
    bool goes_on(uint64_t more = 20, milliseconds timeout = default_timeout());
    // Ends the thread; what went wrong, or empty.
    std::string stop();

  private:
    void serve(uint64_t disk_bytes, uint64_t seed);

    std::unique_ptr<test_guest> guest_;
    std::atomic<uint64_t> done_{0};
    std::atomic<bool> failed_{false};
    std::string error_; // written before failed_
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

} // namespace vql::guest
