// SPDX-License-Identifier: GPL-2.0-only
// A device behind a vhost-user socket, set up in the order in which QEMU does it.
#pragma once

#include "transport.h"
#include "vhost_user_client.h"

namespace vql::guest {

struct vhost_user_options {
    uint64_t protocol_features = ~uint64_t{0}; // of those offered, what to take
    bool slots_one_by_one = false;             // ADD_MEM_REG also where a table would do
    bool log_used_rings = false;               // VHOST_VRING_F_LOG
    bool call_last = false;                    // SET_VRING_CALL after SET_VRING_ENABLE
    milliseconds timeout = default_timeout();  // for the connection, and each reply
};

class vhost_user_transport : public transport {
  public:
    explicit vhost_user_transport(std::string path, const vhost_user_options& options = {});

    vhost_user_client& client() { return *client_; }
    int inflight_fd() const { return inflight_fd_.get(); }
    const vu_inflight& inflight_area() const { return inflight_; }

    void disconnect() override { client_.reset(); }
    // A new connection, after the old one or the daemon has gone. Queues go on where their rings
    // are; the in-flight area of the old connection is handed over to the new one.
    void reconnect() override;
    bool outlives_daemon() const override { return false; }
    // A device that lost its rings starts with a new in-flight area.
    void forget_rings() override { inflight_fd_.reset(); }

    uint64_t device_features() override { return client_->get_features(); }
    void set_driver_features(uint64_t features) override;
    unsigned max_queues() override;
    void share_memory(const guest_memory& memory) override;
    void add_slot(const memory_slot& slot) override;
    void remove_slot(const memory_slot& slot) override;
    void start_queues(std::span<const vring_setup> queues) override;
    uint16_t stop_queue(unsigned queue) override;
    void enable_queue(unsigned queue, bool on) override { client_->set_vring_enable(queue, on); }
    void set_call(unsigned queue, std::optional<int> fd) override {
        client_->set_vring_fd(vu_set_vring_call, queue, fd);
    }
    bool wait_ring_error(unsigned queue, milliseconds timeout) override {
        return take_eventfd(err_fds_.at(queue), deadline(timeout)) != 0;
    }
    void read_config(uint32_t offset, std::span<std::byte> bytes) override;
    void write_config(uint32_t offset, std::span<const std::byte> bytes) override;
    bool wait_config_change(milliseconds timeout) override {
        return client_->wait_config_change(timeout);
    }
    uint8_t status() override { return client_->get_status(); }
    void set_status(uint8_t status) override { client_->set_status(status); }

    // The message of one ring's addresses.
    vu_vring_addr vring_addr(unsigned queue, const vring_setup& setup) const;

  private:
    void share_inflight_area(unsigned queues, uint16_t queue_size);

    std::string path_;
    vhost_user_options options_;
    std::optional<vhost_user_client> client_;
    const guest_memory* memory_ = nullptr;
    uint64_t driver_features_ = 0;
    std::vector<int> err_fds_; // of the queues
    unique_fd inflight_fd_;
    vu_inflight inflight_{};
};

// A slot as vhost-user describes it.
vu_region region_of(const memory_slot& slot);

} // namespace vql::guest
