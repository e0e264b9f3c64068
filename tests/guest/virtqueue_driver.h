// SPDX-License-Identifier: GPL-2.0-only
// The driver's side of one split virtqueue (virtio 1.3 §2.7). One thread uses a queue at a time.
// Nothing between add() and pop() allocates or makes a system call, other than a kick.
#pragma once

#include "guest_memory.h"
#include "virtio.h"

#include <atomic>
#include <optional>
#include <vector>

namespace vql::guest {

// One buffer of a descriptor chain.
struct segment {
    uint64_t gpa;
    uint32_t bytes;
    bool device_writes;
};

// What a transport tells the device of a virtqueue. Addresses are guest physical.
struct vring_setup {
    uint16_t size;
    uint64_t desc;
    uint64_t avail;
    uint64_t used;
    uint16_t base; // the available index at which the device goes on
    int kick_fd;
    int call_fd;
    int err_fd;
};

struct virtqueue_options {
    uint16_t size = 128; // a power of two
    bool event_idx = false;
    uint16_t max_indirect = 0; // longest indirect table; 0: none
    uint16_t first_index = 0;  // where avail and used index begin: near 65535 they wrap soon
};

struct completion {
    uint32_t token;
    uint32_t bytes; // used.len
};

class virtqueue_driver {
  public:
    virtqueue_driver(guest_memory& memory, const virtqueue_options& options);
    virtqueue_driver(const virtqueue_driver&) = delete;
    virtqueue_driver& operator=(const virtqueue_driver&) = delete;
    ~virtqueue_driver();

    uint16_t size() const { return options_.size; }
    unsigned in_flight() const { return in_flight_; }
    vring_setup setup(uint16_t base) const;
    // Where the device goes on after it died: QEMU's rule, what it has not used it gets again. What
    // it had fetched beyond that is in the in-flight area.
    uint16_t used_index() const;
    uint16_t first_index() const { return options_.first_index; }
    // Are the chains that the device has not used the last ones made available? If not, it used
    // them out of order, and the rings alone cannot tell a new device what is left to do.
    bool used_in_order() const;

    // Writes a chain (all segments the device reads come first) and its entry in the available
    // ring; the device does not see it before publish(). False if there is no room now.
    bool add(std::span<const segment> chain, uint32_t token, bool indirect = false);
    void publish();
    // Kicks if the device asked to be told of what was published since the last call.
    bool kick_if_wanted();
    void kick() { signal_eventfd(kick_fd_.get()); }

    // The next completion, if there is one. Throws if the device answers what was not asked.
    std::optional<completion> pop();

    // Asks for an interrupt at the after-th completion from now (more than 1 needs EVENT_IDX).
    // False: that many have come meanwhile, do not wait.
    bool arm_interrupt(uint16_t after = 1);
    void disarm_interrupt();
    int call_fd() const { return call_fd_.get(); }
    int err_fd() const { return err_fd_.get(); }

    // Empty rings, as after a device reset; what was in flight is forgotten.
    void reset();

    // Raw access for hostile tests; the indexes of the driver know nothing of it. Entry size() is
    // there, behind the end of the table.
    vring_descriptor& descriptor(uint16_t index) { return desc_[index]; }
    uint64_t indirect_table(uint16_t head) const;
    // Makes the chain that begins at head available, whatever it is.
    void publish_head(uint16_t head);
    // The available index as the device shall see it next.
    void publish_index(uint16_t index);
    uint16_t published() const { return avail_next_; }
    // The used ring without any belief in it.
    vring_used_element used_element(uint16_t index) const;

  private:
    struct head_state {
        uint32_t token;
        uint16_t last;  // last descriptor of the chain, for freeing it
        uint16_t count; // descriptors of the chain; 0: not in flight
    };

    uint16_t mask() const { return static_cast<uint16_t>(options_.size - 1); }
    std::atomic_ref<uint16_t> avail_flags() const { return std::atomic_ref(avail_[0]); }
    std::atomic_ref<uint16_t> avail_index() const { return std::atomic_ref(avail_[1]); }
    std::atomic_ref<uint16_t> used_event() const { return std::atomic_ref(avail_[2 + size()]); }
    std::atomic_ref<uint16_t> used_flags() const { return std::atomic_ref(used_[0]); }
    std::atomic_ref<uint16_t> device_used_index() const { return std::atomic_ref(used_[1]); }
    std::atomic_ref<uint16_t> avail_event() const {
        return std::atomic_ref(used_[2 + size_t{4} * size()]);
    }
    void write_chain(std::span<const segment> chain, uint16_t head);
    void write_table(std::span<const segment> chain, uint16_t head);

    guest_memory& memory_;
    virtqueue_options options_;
    uint64_t desc_gpa_;
    uint64_t avail_gpa_;
    uint64_t used_gpa_;
    uint64_t tables_gpa_ = 0;
    vring_descriptor* desc_;
    uint16_t* avail_; // flags, idx, ring[size], used_event
    uint16_t* used_;  // flags, idx, { id (32), len (32) }[size], avail_event; 4-aligned only
    unique_fd kick_fd_;
    unique_fd call_fd_;
    unique_fd err_fd_;

    std::vector<head_state> heads_;
    std::vector<uint16_t> next_; // our own links: what the device may not scribble on
    uint16_t free_head_ = 0;
    unsigned free_count_ = 0;
    unsigned in_flight_ = 0;
    uint16_t avail_next_ = 0;  // first index not written
    uint16_t avail_told_ = 0;  // avail_next_ at the last kick decision
    uint16_t used_next_ = 0;   // first used index not popped
    uint16_t used_cached_ = 0; // the device's used index as last read
    bool interrupts_off_ = false;
};

} // namespace vql::guest
