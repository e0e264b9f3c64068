// SPDX-License-Identifier: GPL-2.0-only
// The front end of a vhost-user connection: each message once, typed, and raw for hostile tests.
#pragma once

#include "posix.h"
#include "vhost_user.h"

#include <cstring>
#include <optional>
#include <vector>

namespace vql::guest {

struct vu_message {
    vu_header header{};
    std::vector<std::byte> payload;
    std::vector<unique_fd> fds;

    template <typename T>
    T as() const {
        if (payload.size() < sizeof(T)) {
            throw guest_error("reply to request " + std::to_string(header.request) +
                              " is too short: " + std::to_string(payload.size()) + " bytes");
        }
        T value;
        std::memcpy(&value, payload.data(), sizeof(T));
        return value;
    }
};

class vhost_user_client {
  public:
    // Connects to the socket, which may come into being while we wait.
    explicit vhost_user_client(const std::string& path, milliseconds timeout = default_timeout());

    // Raw access.
    void send(uint32_t request, uint32_t flags, std::span<const std::byte> payload = {},
              std::span<const int> fds = {});
    void send_bytes(std::span<const std::byte> bytes, std::span<const int> fds = {});
    vu_message receive();
    // True if the other side closed the connection before the timeout; replies are read and lost.
    bool dropped(milliseconds timeout = default_timeout());
    void close();
    int fd() const { return socket_.get(); }

    // A request with need_reply where REPLY_ACK was negotiated: then an error throws refused, as an
    // empty GET_CONFIG reply does.
    void command(uint32_t request, std::span<const std::byte> payload = {},
                 std::span<const int> fds = {});
    vu_message query(uint32_t request, std::span<const std::byte> payload = {},
                     std::span<const int> fds = {});

    uint64_t get_features();
    void set_features(uint64_t features);
    uint64_t get_protocol_features();
    // Also decides whether command() asks for acknowledgements from now on.
    void set_protocol_features(uint64_t features);
    bool has(vu_protocol_feature feature) const { return (protocol_features_ >> feature & 1) != 0; }
    void set_owner() { command(vu_set_owner); }
    void reset_owner() { command(vu_reset_owner); }
    void reset_device() { command(vu_reset_device); }

    void set_mem_table(std::span<const vu_region> regions, std::span<const int> fds);
    void add_mem_reg(const vu_region& region, int fd);
    void rem_mem_reg(const vu_region& region);
    uint64_t get_max_mem_slots();
    void set_log_base(uint64_t bytes, uint64_t offset, int fd);
    void set_log_fd(int fd);

    uint64_t get_queue_num();
    void set_vring_num(uint32_t queue, uint32_t size) {
        vring_state(vu_set_vring_num, queue, size);
    }
    void set_vring_addr(const vu_vring_addr& addr) { command(vu_set_vring_addr, bytes_of(addr)); }
    void set_vring_base(uint32_t queue, uint32_t base) {
        vring_state(vu_set_vring_base, queue, base);
    }
    uint32_t get_vring_base(uint32_t queue);
    void set_vring_enable(uint32_t queue, bool on) { vring_state(vu_set_vring_enable, queue, on); }
    // request: vu_set_vring_kick, _call or _err; without fd the message says that there is none.
    void set_vring_fd(uint32_t request, uint32_t queue, std::optional<int> fd);

    std::vector<std::byte> get_config(uint32_t offset, uint32_t bytes);
    void set_config(uint32_t offset, std::span<const std::byte> bytes, uint32_t flags = 0);
    vu_inflight get_inflight_fd(uint16_t queues, uint16_t queue_size, unique_fd& fd);
    void set_inflight_fd(const vu_inflight& area, int fd);
    void set_status(uint8_t status);
    uint8_t get_status();

    // The channel on which the back end sends requests of its own.
    void set_backend_req_fd();
    // True once a config change message has come; answers it if it asks for an answer.
    bool wait_config_change(milliseconds timeout = default_timeout());

  private:
    void vring_state(uint32_t request, uint32_t queue, uint32_t num) {
        command(request, bytes_of(vu_vring_state{queue, num}));
    }

    unique_fd socket_;
    unique_fd backend_channel_;
    uint64_t protocol_features_ = 0;
    milliseconds timeout_;
};

} // namespace vql::guest
