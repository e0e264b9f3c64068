// SPDX-License-Identifier: GPL-2.0-only
// A /dev/vhost-vdpa-N: its ioctls and IOTLB messages (linux/vhost.h), each once, typed. A VMM that
// dies is this object's end.
#pragma once

#include "posix.h"

#include <span>

namespace vql::guest {

// VHOST_BACKEND_F_*, by bit.
enum vhost_backend_feature : unsigned {
    backend_iotlb_msg_v2 = 1,
    backend_iotlb_batch = 2,
    backend_suspend = 4,
    backend_resume = 5,
};

struct vhost_ring_addresses {
    uint64_t desc;
    uint64_t avail;
    uint64_t used;
};

// Everything throws refused with the ioctl's name and the reason.
class vhost_vdpa_client {
  public:
    // Opens the node, which may come into being, or be let go by another process, while we wait;
    // becomes its owner and takes the backend features that there are.
    explicit vhost_vdpa_client(const std::string& path, milliseconds timeout = default_timeout());

    bool has(vhost_backend_feature feature) const {
        return (backend_features_ >> feature & 1) != 0;
    }
    uint32_t device_id() const;
    uint64_t features() const;
    void set_features(uint64_t features);
    uint8_t status() const;
    void set_status(uint8_t status); // 0: reset
    void read_config(uint32_t offset, std::span<std::byte> bytes) const;
    void write_config(uint32_t offset, std::span<const std::byte> bytes);
    uint32_t config_bytes() const;
    void set_config_call(int fd);
    unsigned queues() const;
    uint16_t max_queue_size() const;
    unsigned groups() const;
    unsigned address_spaces() const;

    void set_vring_num(unsigned queue, unsigned size);
    void set_vring_base(unsigned queue, unsigned base);
    unsigned vring_base(unsigned queue) const;
    void set_vring_addresses(unsigned queue, const vhost_ring_addresses& iova);
    // -1: none.
    void set_vring_kick(unsigned queue, int fd);
    void set_vring_call(unsigned queue, int fd);
    void enable_vring(unsigned queue, bool on);
    void suspend();
    void resume();

    // Changes of the memory map; within a batch the device sees them at its end.
    void begin_batch();
    void end_batch();
    void map(uint64_t iova, std::span<std::byte> memory, bool device_writes = true);
    void unmap(uint64_t iova, uint64_t bytes);

  private:
    void command(const char* name, unsigned long request, void* argument) const;
    void command(const char* name, unsigned long request) const;
    void send_iotlb(const char* name, uint8_t type, uint64_t iova, uint64_t bytes, void* at,
                    uint8_t permission);

    std::string path_;
    unique_fd fd_;
    uint64_t backend_features_ = 0;
};

} // namespace vql::guest
