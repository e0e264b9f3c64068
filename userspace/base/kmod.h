// SPDX-License-Identifier: GPL-2.0-only
// The kernel module (linux/vqlane.h): each of its commands once, typed, and an owner for each kind
// of its descriptors. All ioctls are here; nothing here decides anything.
//
// Closing a descriptor is always safe, and so is destroying these objects in any order.
#pragma once

#include "base/fd.h"
#include "base/result.h"

#include <array>
#include <cstdint>
#include <linux/vqlane.h>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>
#include <vqlane/mem.h>
#include <vqlane/nvme.h>

namespace vql {

// Where the module's devices are.
inline constexpr const char* kmod_folder = "/dev/vqlane";

// One guest memory, immutable: its regions lie one after the other in its mapping and in DMA
// tables.
class kmod_mspace {
  public:
    kmod_mspace() = default;

    explicit operator bool() const { return bool(fd_); }
    int fd() const { return fd_.get(); }
    // By guest address, none overlapping; each one's first_page is the sum of the pages before it.
    const std::vector<vql_mregion>& regions() const { return regions_; }
    uint64_t pages() const { return pages_; }
    // All of it, for reading and writing. Only that of a vDPA disk's guest.
    result<mapping> map() const;

  private:
    friend class kmod_disk;
    friend class kmod_control;
    explicit kmod_mspace(unique_fd fd) : fd_(std::move(fd)) {}
    result<void> read_regions();
    // Are they as regions() and pages() say?
    bool regular() const;

    unique_fd fd_;
    std::vector<vql_mregion> regions_;
    uint64_t pages_ = 0;
};

// What a disk is created with.
struct kmod_disk_shape {
    uint64_t features = 0; // of VQL_DISK_FEATURES
    uint32_t queues = 0;
    uint32_t queue_size = 0;
    std::array<uint8_t, VQL_CONFIG_BYTES> config{};
};

// What the module needs to serve a disk's queues itself: VQL_IOC_DISK_LANE.
struct kmod_lane {
    uint32_t slot = 0;
    uint32_t busy_iops = 0;
    std::vector<vql_lane_range> ranges; // by target and sector; none: no queue can be lent
    std::array<uint8_t, 20> id{};
};

// This process's claim on a disk. The disk outlives it.
class kmod_disk {
  public:
    kmod_disk() = default;

    explicit operator bool() const { return bool(fd_); }
    int fd() const { return fd_.get(); } // for poll()
    const kmod_disk_shape& shape() const { return shape_; }

    result<vql_disk_state> state() const;
    result<vql_disk_queue> queue(uint32_t index) const;
    // The queue's bell: kick and call in one.
    result<unique_fd> queue_fd(uint32_t index) const;
    // Take the lease. Nothing, when the disk is not, or no longer, as the state of @epoch said.
    result<std::optional<kmod_mspace>> acquire(uint64_t epoch) const;
    // The in-flight record of all queues.
    result<mapping> map_inflight() const;
    result<void> yield(std::span<const uint32_t> next_avail) const;
    // Queues that are lent stand still meanwhile: blocks until what they have in flight is
    // answered, or given up (drain_ms). False: a controller is being reset, nothing has changed.
    result<bool> set_lane(const kmod_lane& lane) const;
    // The module serves the queue from now on, from @next_avail on. All was answered. False: the
    // disk is about to be stopped.
    result<bool> lend(uint32_t index, uint16_t next_avail) const;
    // ... and is to give it back, which state() and queue() tell.
    result<void> take(uint32_t index) const;
    // Where the disk's remap program sends @sectors of the queue's request, or the first of them.
    // May be called on any thread.
    result<vql_disk_remap> remap(uint32_t index, uint32_t op, uint64_t sector,
                                 uint64_t sectors) const;
    result<void> set_config(std::span<const uint8_t, VQL_CONFIG_BYTES> config) const;
    // The driver is to reset the device.
    result<void> broken() const;
    // False: a VMM has it open. With @later it then ends when the VMM lets go of it.
    result<bool> remove(bool later) const;

  private:
    friend class kmod_control;
    kmod_disk(unique_fd fd, std::string who, const kmod_disk_shape& shape)
        : fd_(std::move(fd)), who_(std::move(who)), shape_(shape) {}

    unique_fd fd_;
    std::string who_; // for errors
    kmod_disk_shape shape_;
};

// The control device: disks and guests' memory.
class kmod_control {
  public:
    static result<kmod_control> open(const std::string& folder = kmod_folder);

    const vql_version& version() const { return version_; }
    result<std::vector<vql_disk_next>> list() const;
    // Make a disk, which must not exist, and claim it.
    result<kmod_disk> create(const std::string& name, const kmod_disk_shape& shape) const;
    // Nothing: there is no such disk.
    result<std::optional<kmod_disk>> claim(const std::string& name) const;
    // Pin memory of this process: @regions by guest address, each of whole pages.
    result<kmod_mspace> create_mspace(const std::vector<vql_region>& regions) const;

  private:
    unique_fd fd_;
    vql_version version_{};
};

// The DMA address of each page of an mspace, for one queue pair's controller. Stays readable when
// the memory is revoked, and means nothing then.
class kmod_dma_table {
  public:
    kmod_dma_table() = default;

    explicit operator bool() const { return bool(map_); }
    const uint64_t* words() const { return reinterpret_cast<const uint64_t*>(map_.data()); }
    size_t pages() const { return pages_; }

  private:
    friend class kmod_qpair;
    mapping map_;
    size_t pages_ = 0;
    uint32_t slot_ = 0;
};

class kmod_qpair {
  public:
    kmod_qpair() = default;

    explicit operator bool() const { return bool(fd_); }
    int fd() const { return fd_.get(); } // for poll(): see VQL_IOC_QPAIR_ARM
    bool has_interrupt() const { return made_.has_interrupt; }
    // Its memory, mapped here. What the controller can do is left for the caller to fill in.
    const vql_nvme_queue& queue() const { return queue_; }
    // The mappings that are taken away when the queue pair is lost (SIGBUS on touch): all but that
    // of the state word.
    std::vector<std::pair<void*, size_t>> revocable() const;

    // Any thread. Neither can fail in a way that its caller does not see in the state word.
    void arm() const;
    void abort(uint16_t cid) const;

    // Nothing: the queue pair is lost.
    result<std::optional<kmod_dma_table>> attach(const kmod_mspace& space) const;
    // No command of this queue pair touches that memory any more.
    void detach(const kmod_dma_table& table) const;

  private:
    friend class kmod_ctrl;
    result<void> map(bool shadow);
    result<mapping> map_part(const char* what, uint64_t at, uint64_t bytes, bool writable) const;

    unique_fd fd_;
    vql_qpair_create made_{};
    mapping status_, sq_, cq_, doorbell_, pool_, shadow_, event_;
    vql_nvme_queue queue_{};
};

// One NVMe controller that is bound to the module. Errors, and its queue pairs', do not name it:
// the caller does.
class kmod_ctrl {
  public:
    kmod_ctrl() = default;
    // @bdf: its PCI address, "0000:01:00.0".
    static result<kmod_ctrl> open(const std::string& bdf, const std::string& folder = kmod_folder);

    explicit operator bool() const { return bool(fd_); }
    int fd() const { return fd_.get(); } // for poll(), and flock()
    result<vql_ctrl_info> info() const;
    // Fails if it cannot be learned now. Of a namespace that cannot be served, or is none, blocks
    // and block_bytes are 0, and the reason is text, zero-terminated.
    result<vql_ns_info> ns_info(uint32_t nsid) const;
    // @what: VQL_ADMIN_…
    result<void> admin_read(uint32_t what, uint32_t nsid, std::span<uint8_t> into) const;
    // All its queue pairs are lost. Blocks, for as long as the controller takes.
    result<void> reset() const;
    result<kmod_qpair> create_qpair(uint32_t depth, uint32_t pool_pages) const;

  private:
    unique_fd fd_;
};

} // namespace vql
