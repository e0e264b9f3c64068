// SPDX-License-Identifier: GPL-2.0-only
// The BPF maps of the daemon.
//
// Each disk has a statistics map and an extent table that pollers use as plain memory, and that BPF
// programs and bpftool read as maps. Where BPF is not permitted the same bytes are anonymous
// memory.
//
// A disk has a slot in the maps of all disks (vqlane/maps.h). The maps of one that lives on in the
// kernel module stay pinned when the daemon ends, for programs there go on reading them; the next
// daemon finds them by the disk's name.
#pragma once

#include "base/fd.h"
#include "base/result.h"
#include "ebpf/mode.h"

#include <bitset>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vqlane/maps.h>
#include <vqlane/stats.h>

namespace vql {

// An array map's memory; anonymous when there is no map. Unmapped with its owner.
class shared_array {
  public:
    uint8_t* at(uint32_t index) const { return memory_.data() + size_t{index} * stride_; }
    uint32_t entries() const { return entries_; }

  private:
    friend class bpf_maps;
    result<void> map(unique_fd fd, uint32_t entries, size_t value_bytes);

    mapping memory_;
    unique_fd map_;
    size_t stride_ = 0;
    uint32_t entries_ = 0;
};

class bpf_maps {
  public:
    // Make @dir on a BPF file system, hold it for this process alone, and take over the maps that
    // an earlier daemon has left there or make them. With bpf_mode::automatic a kernel that refuses
    // is told once in the log, and the maps become anonymous memory; bpf_mode::required makes that
    // an error. Maps of another version are an error with both: they may be in use.
    static result<std::unique_ptr<bpf_maps>> open(const std::string& dir, bpf_mode mode);
    // What belongs to no disk goes with us.
    ~bpf_maps();

    // The slot of disk @name, in which an earlier daemon may have left its maps.
    result<uint32_t> take_slot(const std::string& name);
    bool inherited(uint32_t slot) const { return inherited_[slot]; }
    // The statistics of the disk at @slot: @values of struct vql_disk_stats; zeroed, if
    // they are not taken over.
    result<shared_array> make_stats(uint32_t slot, uint32_t values);
    // A table of @chunks words for the disk at @slot: the one it has, if that is as large and of
    // such chunks, or a new one that nobody sees until it is published.
    result<shared_array> make_extents(uint32_t slot, uint32_t chunks, uint32_t chunk_shift);
    // Let programs see @extents, whose words are all there. An older table is theirs no more when
    // this returns; but chunks of another size than before can be looked up nowhere for a moment.
    result<void> publish_extents(uint32_t slot, const shared_array& extents, uint32_t chunk_shift);
    // The disk has ended. Its maps remain for those who have them mapped.
    void forget_disk(uint32_t slot);
    // The same for inherited ones of disks that are no more.
    void forget_unless(const std::function<bool(const std::string& name)>& lives);

    bool active() const { return bool(tables_); }
    int stats_tables() const { return stats_tables_.get(); }
    // Is there a disk?
    bool in_use() const;
    const std::string& dir() const { return dir_; }
    std::string disk_dir(uint32_t slot) const;

  private:
    explicit bpf_maps(std::string dir) : dir_(std::move(dir)) {}
    result<void> hold_dir();
    result<bool> take_over();
    result<void> make_outer();
    vql_disk_entry& entry(uint32_t slot) const;
    result<shared_array> make(uint32_t slot, const char* map, uint32_t entries, size_t value_bytes);
    result<void> publish_stats(uint32_t slot, const shared_array& stats) const;
    result<void> pin(uint32_t slot, const char* map, const shared_array& array) const;

    std::string dir_;
    unique_fd lock_;
    shared_array disks_;
    unique_fd tables_; // none: all is anonymous memory
    unique_fd stats_tables_;
    std::bitset<VQL_MAX_DISKS> inherited_;
};

} // namespace vql
