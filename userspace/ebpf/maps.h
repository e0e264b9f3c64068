// SPDX-License-Identifier: GPL-2.0-only
// The BPF maps of the daemon.
//
// Each disk has a statistics map and an extent table that pollers use as plain memory, and that BPF
// programs and bpftool read as maps. Where BPF is not permitted the same bytes are anonymous
// memory.
#pragma once

#include "base/fd.h"
#include "base/result.h"
#include "ebpf/mode.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vqlane/stats.h>

namespace vql {

// An array map's memory; anonymous when there is no map. Unpinned and unmapped with its owner.
class shared_array {
  public:
    shared_array() = default;
    shared_array(shared_array&& other) noexcept { swap(other); }
    shared_array& operator=(shared_array&& other) noexcept {
        shared_array old;
        swap(old); // ours goes when we return
        swap(other);
        return *this;
    }
    ~shared_array();

    uint8_t* at(uint32_t index) const { return memory_.data() + size_t{index} * stride_; }
    uint32_t entries() const { return entries_; }
    // Another array took over the pin: do not remove it.
    void disown() { pin_.clear(); }

  private:
    friend class bpf_maps;
    void swap(shared_array& other) noexcept {
        std::swap(memory_, other.memory_);
        std::swap(map_, other.map_);
        std::swap(pin_, other.pin_);
        std::swap(stride_, other.stride_);
        std::swap(entries_, other.entries_);
    }

    mapping memory_;
    unique_fd map_;
    std::string pin_; // empty when not pinned
    size_t stride_ = 0;
    uint32_t entries_ = 0;
};

class bpf_maps {
  public:
    // Make @dir on a BPF file system, hold it for this process alone, remove what a dead daemon
    // left there, load and pin the outer map. With bpf_mode::automatic a kernel that refuses is
    // told once in the log, and the maps become anonymous memory; bpf_mode::required makes that an
    // error.
    static result<std::unique_ptr<bpf_maps>> open(const std::string& dir, bpf_mode mode);
    ~bpf_maps();

    // The statistics of disk @name: @pollers values of struct vql_disk_stats, zeroed.
    result<shared_array> make_stats(const std::string& name, uint32_t pollers);
    // The extent table of disk @name with @chunks words, and its place @disk in the outer map.
    // It takes the place and the pin of an older one of the same disk, which the caller keeps until
    // nobody reads it, after disown().
    result<shared_array> make_extents(const std::string& name, uint32_t disk, uint32_t chunks);
    void forget_disk(const std::string& name, uint32_t disk);

    bool active() const { return bool(tables_); }

  private:
    explicit bpf_maps(std::string dir) : dir_(std::move(dir)) {}
    result<void> load_tables();
    result<shared_array> make(const std::string& name, const char* map, uint32_t entries,
                              size_t value_bytes);
    std::string disk_dir(const std::string& name) const;

    std::string dir_;
    unique_fd lock_;
    unique_fd tables_;
};

} // namespace vql
