// SPDX-License-Identifier: GPL-2.0-only
// How a driver reaches its device: features, memory, queues, config space. The driver knows nothing
// else of it. One is a vhost-user socket, the other a vhost-vdpa character device.
#pragma once

#include "guest_memory.h"
#include "virtqueue_driver.h"

namespace vql::guest {

class transport {
  public:
    virtual ~transport() = default;

    // The VMM goes, as by its death, and comes back with the same guest. What the device had taken
    // is complete when it is back.
    virtual void disconnect() = 0;
    virtual void reconnect() = 0;
    // Does the VMM keep its device when the daemon dies? Otherwise it has to reconnect.
    virtual bool outlives_daemon() const = 0;
    // The rings are to begin empty: what was in flight is nobody's business any more.
    virtual void forget_rings() = 0;

    virtual uint64_t device_features() = 0;
    virtual void set_driver_features(uint64_t features) = 0;
    virtual unsigned max_queues() = 0;
    virtual void share_memory(const guest_memory& memory) = 0;
    // Changes of the shared memory while queues run. Nothing in flight is in what is removed.
    virtual void add_slot(const memory_slot& slot) = 0;
    virtual void remove_slot(const memory_slot& slot) = 0;
    virtual void start_queues(std::span<const vring_setup> queues) = 0;
    // The device has finished everything it took from the queue; where it would go on.
    virtual uint16_t stop_queue(unsigned queue) = 0;
    virtual void enable_queue(unsigned queue, bool on) = 0;
    // Where the device interrupts from now on; nowhere without fd.
    virtual void set_call(unsigned queue, std::optional<int> fd) = 0;
    // True once the device has told that it gave up on the queue.
    virtual bool wait_ring_error(unsigned queue, milliseconds timeout) = 0;
    virtual void read_config(uint32_t offset, std::span<std::byte> bytes) = 0;
    virtual void write_config(uint32_t offset, std::span<const std::byte> bytes) = 0;
    virtual bool wait_config_change(milliseconds timeout) = 0;
    virtual uint8_t status() = 0;
    virtual void set_status(uint8_t status) = 0;

  protected:
    transport() = default;
    transport(const transport&) = default;
    transport& operator=(const transport&) = default;
};

} // namespace vql::guest
