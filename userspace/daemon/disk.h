// SPDX-License-Identifier: GPL-2.0-only
// A disk: a volume, its queues' places on the pollers, its statistics, and its vhost-user socket.
// On the control thread.
#pragma once

#include "base/event_loop.h"
#include "base/result.h"
#include "daemon/bpf.h"
#include "daemon/config.h"
#include "daemon/poller.h"
#include "daemon/targets.h"
#include "daemon/volume.h"
#include "frontend/vhost_user.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace vql {

// What all disks share.
struct disk_services {
    event_loop& loop;
    target_set& targets;
    bpf_maps& maps;
    std::vector<std::unique_ptr<poller>>& pollers;
    memory_registration registration = memory_registration::automatic;
};

class disk : public queue_host {
  public:
    // Claim the targets, make the maps, listen on @socket. Errors leave nothing behind.
    static result<std::unique_ptr<disk>> create(const disk_config& c, const std::string& socket,
                                                uint32_t index, disk_services& services);
    ~disk() override;

    // Let go of the client and the socket; @done when the disk may be destroyed.
    void close(std::function<void()> done);

    // Grow to @bytes: targets grow with it where the disk has one whole target that can. The guest
    // is told. @done on the control thread, with the error when there is one.
    void resize(uint64_t bytes, std::function<void(result<void>)> done);

    const disk_config& settings() const { return config_; }
    const std::string& socket() const { return socket_; }
    const volume& layout() const { return volume_; }
    uint32_t index() const { return index_; }
    bool connected() const { return server_->connected(); }
    uint32_t queues_running() const { return server_->queues_running(); }
    std::vector<int> poller_cpus() const;
    // Sum over all pollers.
    vql_disk_stats stats() const;
    void check_memory() { server_->check_memory(); }

    // queue_host
    const blk_geometry& geometry() const override { return geometry_; }
    void start_queue(virtqueue& q) override;
    void stop_queue(virtqueue& q, std::function<void()> done) override;
    void with_queue(virtqueue& q, std::function<void()> fn) override;
    void memory_mapped(guest_memory& m) override;
    void memory_unmapped(guest_memory& m, std::function<void()> done) override;

  private:
    disk(const disk_config& c, const std::string& socket, uint32_t index, disk_services& services);
    result<void> set_up();
    result<volume> grown_volume(uint64_t bytes);
    void apply_volume(volume v);
    poller& poller_of(const virtqueue& q) const;

    disk_config config_;
    std::string socket_;
    uint32_t index_;
    disk_services& services_;
    volume volume_;
    blk_geometry geometry_;
    shared_array stats_, extents_;
    vql_extent_table table_{};
    std::vector<std::unique_ptr<served_queue>> queues_;
    std::vector<uint8_t*> registered_; // regions that pollers were told to pin
    std::unique_ptr<vhost_user_server> server_;
};

} // namespace vql
