// SPDX-License-Identifier: GPL-2.0-only
// What the end-to-end tests share: seeds and scale, a daemon that is checked at its end, a guest on
// a disk, and a bystander whose I/O must go on whatever is done to its neighbours.
#pragma once

#include "daemon_process.h"
#include "model_run.h"
#include "vhost_user_transport.h"
#include "vhost_vdpa_transport.h"

#include <atomic>
#include <exception>
#include <future>
#include <thread>

namespace vql::guest {

// $VQL_SEED, or a new one each run; printed once. salt tells uses in one test apart.
uint64_t test_seed(uint64_t salt = 0);
// n times $VQL_TEST_SCALE (less in a sanitizer build that sets none), but at least `least`.
uint64_t scaled(uint64_t n, uint64_t least = 1);

// Guests come over vhost-user, or with VQL_E2E=vdpa over vqlane.ko, which is loaded.
bool vdpa_world();
// Who is to serve the queues of vDPA disks that do not say it themselves: $VQL_E2E_LANE, or "poll".
std::string lane();
// Disks are files, or, always in the vDPA world and else with VQL_E2E_BDF, ranges of an NVMe drive
// with two controllers: $VQL_E2E_BDF is bound to vqlane, and through the other the kernel sees
// namespace 1 as $VQL_E2E_NVME (256 MiB of 512-byte blocks that read as zeroes when deallocated).
bool drive_world();
// $NAME, which has to be there.
std::string environment(const char* name);
// A folder for files where disks are; there O_DIRECT should work.
std::string storage_folder();
// Some tests are steered by a case in tests/vm/cases, on whose machine they run. let_case() has it
// run its function do_WORD, and comes back when that is done. Such a case names further drives that
// are bound to vqlane, in $VQL_E2E_VICTIMS: namespace 1 of the first is target "victim0", namespace
// 2 would be "victim0-2". What a test leaves with leave_for_case() is what the drive must still
// hold there when the kernel has it back.
void let_case(const std::string& word); // on any thread
std::string victim_address(unsigned n);
std::string victim_target(unsigned n, unsigned nsid = 1);
// … and a disk of its name, on its first bytes, with two queues.
std::string victim_disk(unsigned n, uint64_t bytes);
// Skips a test that is for vDPA devices, elsewhere.
void needs_vdpa_world();
// Skips a test that has this among its local variables, for that reason, in the vDPA world.
struct vhost_user_only {
    explicit vhost_user_only(const char* why);
};

// A vqlaned that must be alive, and without a sanitizer's report, when the test is done with it.
class test_daemon : public daemon_process {
  public:
    using daemon_process::daemon_process;
    ~test_daemon() noexcept(false); // a failed check may throw (catch2 --abort)

    // Where a guest finds the disk: its socket, or its device node.
    std::string device(const std::string& disk) const;
    // As disk_list has the disk; null if there is none of that name.
    nlohmann::json entry(const std::string& disk) const;
    // Removes a disk whose guest, if it had one, has left it: the daemon sees that a moment later.
    void remove(const std::string& disk) const;
    // Removes a disk that a guest has, by force; a vDPA disk ends, and the reply comes, no later
    // than its guest lets go of it. get() throws if it is refused.
    std::future<void> remove_by_force(const std::string& disk) const;

  private:
    void remove_disks();
};

// Pieces of the configuration. lines, extra: (further) lines of the [[disk]] table.
std::string file_target(const std::string& name, const std::string& path);
std::string null_target(const std::string& name, const std::string& size);
std::string disk_of(const std::string& name, const std::string& lines);
std::string disk_on(const std::string& name, const std::string& target,
                    const std::string& extra = "");
// The same for a disk_add over the control socket.
nlohmann::json disk_add(nlohmann::json request);

// Bytes of a file or a block device.
struct backing_extent {
    std::string path;
    uint64_t offset;
    uint64_t bytes;
};
// The first byte at which they differ from the model, or model.size().
uint64_t compare_backing(std::span<const std::byte> model,
                         const std::vector<backing_extent>& extents);

void leave_for_case(std::span<const std::byte> model, const backing_extent& extent);

// What the disks of one test are made of, all zeroes at first: files that are targets, or ranges of
// one target, the drive.
class test_storage {
  public:
    // Files are in a new folder below parent.
    explicit test_storage(const std::string& parent = "/dev/shm") : files_(parent) {}
    void add(const std::string& name, uint64_t bytes);
    void add_file(const std::string& name, uint64_t bytes); // in any world

    // Pieces of the configuration: all [[target]] tables; a disk of all of one part; an item of a
    // disk's extents. target_of: which target the part is in.
    std::string targets() const;
    std::string disk(const std::string& disk, const std::string& name,
                     const std::string& extra = "") const;
    std::string extent(const std::string& name, uint64_t offset, uint64_t bytes) const;
    std::string target_of(const std::string& name) const;

    std::string path(const std::string& name) const { return files_ / name; } // of a file
    backing_extent part(const std::string& name) const;
    backing_extent part(const std::string& name, uint64_t offset, uint64_t bytes) const;

  private:
    struct piece {
        std::string name;
        uint64_t bytes;
        bool on_drive;
        uint64_t offset; // on the drive
    };
    const piece& named(const std::string& name) const;

    temporary_directory files_;
    std::vector<piece> pieces_;
    uint64_t drive_used_ = 16 << 20; // not 0 at first, so that a lost offset is noticed
};

struct guest_options {
    blk_options blk;
    vhost_user_options vhost;
    uint64_t memory_bytes = 64 << 20;
    unsigned slots = 1; // of equal size, adjacent
    uint64_t memory_base = 0;
    bool start = true;
};

// Of a guest with two queues, both loaded.
guest_options two_queue_guest();

// A socket or a device node, as test_daemon::device() tells it.
std::unique_ptr<transport> open_device(const std::string& path,
                                       const vhost_user_options& options = {});

// A guest with one disk.
struct test_guest {
    std::unique_ptr<guest_memory> memory;
    std::unique_ptr<transport> link;
    transport& device; // *link
    blk_driver driver;

    explicit test_guest(const std::string& path, const guest_options& options = {});

    // The transport as it is, for tests of one world.
    vhost_user_transport& vhost_user() { return dynamic_cast<vhost_user_transport&>(device); }
    vhost_vdpa_transport& vhost_vdpa() { return dynamic_cast<vhost_vdpa_transport&>(device); }

    // Another daemon has taken the place of one that ended: the VMM does what it has to.
    void daemon_is_back();
    // True if the disk was removed by force: a socket is closed, and on a device, which stays for
    // as long as the VMM has it, all in flight is answered and everything else is an error.
    bool disk_lost(milliseconds timeout = default_timeout());
};

struct bystander_options {
    bystander_options();
    guest_options guest;
    run_options run;
    uint64_t batch = 16;     // operations, between which it looks up
    unsigned pause_us = 500; // after each batch: leaves the CPUs to the test proper
};

// A guest under verified I/O in a thread of its own, usually on another disk than the test's.
class bystander {
  public:
    bystander(const std::string& path, uint64_t disk_bytes, uint64_t seed,
              const bystander_options& options = {});
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

    bystander_options options_;
    std::unique_ptr<test_guest> guest_;
    std::atomic<uint64_t> done_{0};
    std::atomic<bool> failed_{false};
    std::string error_; // written before failed_
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

} // namespace vql::guest
