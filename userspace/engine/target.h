// SPDX-License-Identifier: GPL-2.0-only
// Where bytes rest: a regular file, a block device, an NVMe namespace, or nothing (null).
#pragma once

#include "base/fd.h"
#include "base/result.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

namespace vql {

class raw_record;

enum class target_kind : uint8_t { null, uring, nvme };

// Immutable once published to the pollers, but for bytes (grows), changes, offline (all three the
// control thread's) and the atomics, which any poller may clear when the kernel turns out not to
// support an operation.
struct target {
    std::string name;
    target_kind kind = target_kind::null;
    uint32_t id = 0;             // index in extent words and in the registered files of each poller
    uint64_t bytes = 0;          // usable size, a multiple of block_bytes
    uint32_t block_bytes = 512;  // logical block: 512 or 4096
    uint32_t memory_align = 512; // what O_DIRECT wants of buffer addresses, a power of two
    bool direct = false;         // opened with O_DIRECT
    bool block_device = false;
    bool read_only = false;    // opened for reading only
    std::string why_read_only; // "can be opened for reading only (…)"
    bool discard = false;      // discard gives space back
    std::string path;

    // nvme
    uint32_t controller = 0; // index among the daemon's
    uint32_t nsid = 0;       // namespace
    uint32_t boundary_blocks =
        0; // no read, write or write zeroes crosses a multiple of it (NOIOB); 0 = none
    uint32_t changes = 0; // its controller's, when it was looked at last (control thread only)
    std::string offline;  // why the namespace is another now (control thread only)

    // uring
    unique_fd fd;
    std::atomic<bool> zero_range{true};   // FALLOC_FL_ZERO_RANGE works
    std::atomic<bool> punch_hole{true};   // FALLOC_FL_PUNCH_HOLE works
    std::atomic<bool> bdev_discard{true}; // BLOCK_URING_CMD_DISCARD works

    // What storage refused: written by pollers, told to the operator by the control thread.
    std::atomic<uint64_t> errors{0};
    std::atomic<int> last_errno{0};
    std::atomic<uint8_t> last_error_op{0}; // enum vql_op
    std::atomic<uint64_t> last_error_offset{0};
};

std::unique_ptr<target> make_null_target(std::string name, uint64_t bytes);

struct open_options {
    // Only to be read: opened so, and shared with others that only read, also of other processes.
    bool read_only = false;
    // Its bytes are a disk's, whatever they look like: else an image format (qcow2, …) is refused,
    // and a block device that is part of something larger (LVM, md, ZFS, …).
    bool raw = false;
    // What was served before is a disk's as well, and what is written from now on will have been.
    raw_record* served = nullptr;
};

// Open the file or block device at @path, for this process alone (see image_lock.h), with O_DIRECT
// where it can. Waits for storage, and changes nothing there. Errors say who else has it, or how to
// make it. On any thread.
result<std::unique_ptr<target>> open_uring_target(std::string name, const std::string& path,
                                                  const open_options& options = {});

// Does the file or block device that @fd has open, of @bytes, hold what open_uring_target()
// refuses? The words of its error; empty: no.
std::string other_contents(int fd, const std::string& path, bool block_device, uint64_t bytes);

// Can grow_target() make it larger?
bool can_grow(const target& t);

// Look again how large the target is (it may have grown); with @want larger than a regular file,
// extend it (sparse). Returns the usable size, which @t does not know yet.
result<uint64_t> grow_target(const target& t, uint64_t want);

} // namespace vql
