// SPDX-License-Identifier: GPL-2.0-only
// A device behind a /dev/vhost-vdpa-N, set up in the order in which QEMU does it.
#pragma once

#include "transport.h"
#include "vhost_vdpa_client.h"

namespace vql::guest {

class vhost_vdpa_transport : public transport {
  public:
    explicit vhost_vdpa_transport(std::string path, milliseconds timeout = default_timeout());

    vhost_vdpa_client& client() { return *client_; }

    void disconnect() override;
    void reconnect() override;
    bool outlives_daemon() const override { return true; }
    void forget_rings() override {} // a reset is all that it takes

    uint64_t device_features() override { return client_->features(); }
    void set_driver_features(uint64_t features) override;
    unsigned max_queues() override { return client_->queues(); }
    void share_memory(const guest_memory& memory) override { memory_ = &memory; }
    void add_slot(const memory_slot& slot) override;
    void remove_slot(const memory_slot& slot) override;
    void start_queues(std::span<const vring_setup> queues) override;
    uint16_t stop_queue(unsigned queue) override;
    void enable_queue(unsigned queue, bool on) override { client_->enable_vring(queue, on); }
    void set_call(unsigned queue, std::optional<int> fd) override {
        client_->set_vring_call(queue, fd.value_or(-1));
    }
    bool wait_ring_error(unsigned queue, milliseconds timeout) override;
    void read_config(uint32_t offset, std::span<std::byte> bytes) override {
        client_->read_config(offset, bytes);
    }
    void write_config(uint32_t offset, std::span<const std::byte> bytes) override {
        client_->write_config(offset, bytes);
    }
    bool wait_config_change(milliseconds timeout) override {
        return take_eventfd(config_call_.get(), deadline(timeout)) != 0;
    }
    uint8_t status() override { return client_->status(); }
    void set_status(uint8_t status) override;

  private:
    struct range {
        uint64_t iova;
        uint64_t bytes;
    };
    void map_memory();
    void map_slot(uint64_t gpa, uint64_t bytes);

    std::string path_;
    milliseconds timeout_; // for the node to be there and free
    unique_fd config_call_;
    std::optional<vhost_vdpa_client> client_;
    const guest_memory* memory_ = nullptr;
    std::vector<range> mapped_;
    bool suspended_ = false;
};

} // namespace vql::guest
