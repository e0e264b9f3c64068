// SPDX-License-Identifier: GPL-2.0-only
// How a driver reaches its device: features, memory, queues, config space. The driver knows nothing
// else of it. vhost_user_transport is the first; a vhost-vdpa character device is another.
#pragma once

#include "guest_memory.h"
#include "virtqueue_driver.h"

namespace vql::guest {

class transport {
  public:
    virtual ~transport() = default;

    virtual uint64_t device_features() = 0;
    virtual void set_driver_features(uint64_t features) = 0;
    virtual unsigned max_queues() = 0;
    virtual void share_memory(const guest_memory& memory) = 0;
    virtual void start_queues(std::span<const vring_setup> queues) = 0;
    // The device has finished everything it took from the queue; where it would go on.
    virtual uint16_t stop_queue(unsigned queue) = 0;
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
