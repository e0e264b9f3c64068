// SPDX-License-Identifier: GPL-2.0-only
#include "vhost_user_client.h"

#include <array>
#include <cerrno>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr size_t max_fds = 64; // more than the protocol allows: hostile tests send them
constexpr size_t max_payload = 1 << 20;

// Sends all bytes, with the descriptors on the first of them.
void send_all(int socket, std::span<const std::byte> bytes, std::span<const int> fds,
              const deadline& until) {
    if (fds.size() > max_fds) {
        throw guest_error("too many descriptors in one message");
    }
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * max_fds)> control{};
    while (!bytes.empty()) {
        iovec data{const_cast<std::byte*>(bytes.data()), bytes.size()};
        msghdr message{};
        message.msg_iov = &data;
        message.msg_iovlen = 1;
        if (!fds.empty()) {
            message.msg_control = control.data();
            message.msg_controllen = CMSG_SPACE(fds.size_bytes());
            cmsghdr* header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(fds.size_bytes());
            std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
        }
        ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            bytes = bytes.subspan(static_cast<size_t>(sent));
            fds = {};
        } else if (errno == EPIPE || errno == ECONNRESET) {
            throw disconnected("the back end closed the connection");
        } else if (errno == EAGAIN) {
            if (until.passed()) {
                throw timeout_error("the back end does not read its socket");
            }
            usleep(200);
        } else if (errno != EINTR) {
            throw_errno("sendmsg");
        }
    }
}

// Reads exactly the bytes asked for; descriptors that come along are collected.
void receive_all(int socket, std::span<std::byte> bytes, std::vector<unique_fd>& fds,
                 const deadline& until) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * max_fds)> control{};
    while (!bytes.empty()) {
        if (!wait_readable(socket, until)) {
            throw timeout_error("no reply from the back end in time");
        }
        iovec data{bytes.data(), bytes.size()};
        msghdr message{};
        message.msg_iov = &data;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno == ECONNRESET)) {
            throw disconnected("the back end closed the connection");
        }
        if (got < 0) {
            if (errno == EAGAIN || errno == EINTR) {
                continue;
            }
            throw_errno("recvmsg");
        }
        for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
             header = CMSG_NXTHDR(&message, header)) {
            size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            for (size_t i = 0; i < count; i++) {
                int fd = -1;
                std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
                fds.emplace_back(fd);
            }
        }
        bytes = bytes.subspan(static_cast<size_t>(got));
    }
}

vu_message receive_message(int socket, const deadline& until) {
    vu_message message;
    receive_all(socket, std::as_writable_bytes(std::span(&message.header, 1)), message.fds, until);
    if (message.header.size > max_payload) {
        throw guest_error("message with a payload of " + std::to_string(message.header.size) +
                          " bytes");
    }
    message.payload.resize(message.header.size);
    receive_all(socket, message.payload, message.fds, until);
    return message;
}

} // namespace

vhost_user_client::vhost_user_client(const std::string& path, milliseconds timeout)
    : timeout_(timeout) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path)) {
        throw guest_error("socket path is too long: " + path);
    }
    std::memcpy(address.sun_path, path.data(), path.size());
    deadline until(timeout);
    for (;;) {
        // Non-blocking: a full backlog says EAGAIN then, instead of waiting without bound.
        socket_ = unique_fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        if (!socket_) {
            throw_errno("socket");
        }
        if (connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
            return;
        }
        bool may_come = errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN;
        if (!may_come || until.passed()) {
            throw_errno("connect to " + path);
        }
        usleep(1000);
    }
}

void vhost_user_client::send(uint32_t request, uint32_t flags, std::span<const std::byte> payload,
                             std::span<const int> fds) {
    vu_header header{request, flags, static_cast<uint32_t>(payload.size())};
    std::vector<std::byte> bytes(sizeof(header) + payload.size());
    std::memcpy(bytes.data(), &header, sizeof(header));
    if (!payload.empty()) {
        std::memcpy(bytes.data() + sizeof(header), payload.data(), payload.size());
    }
    send_bytes(bytes, fds);
}

void vhost_user_client::send_bytes(std::span<const std::byte> bytes, std::span<const int> fds) {
    send_all(socket_.get(), bytes, fds, deadline(timeout_));
}

vu_message vhost_user_client::receive() {
    return receive_message(socket_.get(), deadline(timeout_));
}

bool vhost_user_client::dropped(milliseconds timeout) {
    deadline until(timeout);
    std::vector<unique_fd> fds;
    std::byte one;
    try {
        for (;;) {
            receive_all(socket_.get(), std::span(&one, 1), fds, until);
        }
    } catch (const disconnected&) {
        return true;
    } catch (const timeout_error&) {
        return false;
    }
}

void vhost_user_client::close() {
    socket_.reset();
    backend_channel_.reset();
}

void vhost_user_client::command(uint32_t request, std::span<const std::byte> payload,
                                std::span<const int> fds) {
    if (!has(vu_feature_reply_ack)) {
        send(request, vu_version, payload, fds);
        return;
    }
    send(request, vu_version | vu_need_reply, payload, fds);
    vu_message reply = receive();
    if (reply.header.request != request || reply.header.flags != (vu_version | vu_reply)) {
        throw guest_error("request " + std::to_string(request) + " was answered with request " +
                          std::to_string(reply.header.request) + ", flags " +
                          hex(reply.header.flags));
    }
    uint64_t error = reply.as<uint64_t>();
    if (error != 0) {
        throw refused("request " + std::to_string(request) + " was refused: " + hex(error));
    }
}

vu_message vhost_user_client::query(uint32_t request, std::span<const std::byte> payload,
                                    std::span<const int> fds) {
    send(request, vu_version, payload, fds);
    vu_message reply = receive();
    if (reply.header.request != request || reply.header.flags != (vu_version | vu_reply)) {
        throw guest_error("request " + std::to_string(request) + " was answered with request " +
                          std::to_string(reply.header.request) + ", flags " +
                          hex(reply.header.flags));
    }
    return reply;
}

uint64_t vhost_user_client::get_features() {
    return query(vu_get_features).as<uint64_t>();
}

void vhost_user_client::set_features(uint64_t features) {
    command(vu_set_features, bytes_of(features));
}

uint64_t vhost_user_client::get_protocol_features() {
    return query(vu_get_protocol_features).as<uint64_t>();
}

void vhost_user_client::set_protocol_features(uint64_t features) {
    command(vu_set_protocol_features, bytes_of(features));
    protocol_features_ = features;
}

void vhost_user_client::set_mem_table(std::span<const vu_region> regions,
                                      std::span<const int> fds) {
    if (regions.size() > vu_max_regions) {
        throw guest_error("more regions than a SET_MEM_TABLE can carry: add them one by one");
    }
    vu_mem_table table{};
    table.count = static_cast<uint32_t>(regions.size());
    std::copy(regions.begin(), regions.end(), table.regions);
    command(vu_set_mem_table,
            bytes_of(table).first(offsetof(vu_mem_table, regions) + regions.size_bytes()), fds);
}

void vhost_user_client::add_mem_reg(const vu_region& region, int fd) {
    command(vu_add_mem_reg, bytes_of(vu_mem_reg{0, region}), std::span(&fd, 1));
}

void vhost_user_client::rem_mem_reg(const vu_region& region) {
    command(vu_rem_mem_reg, bytes_of(vu_mem_reg{0, region}));
}

uint64_t vhost_user_client::get_max_mem_slots() {
    return query(vu_get_max_mem_slots).as<uint64_t>();
}

void vhost_user_client::set_log_base(uint64_t bytes, uint64_t offset, int fd) {
    // With LOG_SHMFD the reply comes always, not as a REPLY_ACK.
    vu_message reply = query(vu_set_log_base, bytes_of(vu_log{bytes, offset}), std::span(&fd, 1));
    if (reply.payload.size() >= sizeof(uint64_t) && reply.as<uint64_t>() != 0) {
        throw refused("SET_LOG_BASE was refused");
    }
}

void vhost_user_client::set_log_fd(int fd) {
    command(vu_set_log_fd, {}, std::span(&fd, 1));
}

uint64_t vhost_user_client::get_queue_num() {
    return query(vu_get_queue_num).as<uint64_t>();
}

uint32_t vhost_user_client::get_vring_base(uint32_t queue) {
    auto state = query(vu_get_vring_base, bytes_of(vu_vring_state{queue, 0})).as<vu_vring_state>();
    if (state.index != queue) {
        throw guest_error("GET_VRING_BASE answered for queue " + std::to_string(state.index));
    }
    return state.num;
}

void vhost_user_client::set_vring_fd(uint32_t request, uint32_t queue, std::optional<int> fd) {
    uint64_t value = queue | (fd ? 0 : vu_no_fd);
    if (fd) {
        command(request, bytes_of(value), std::span(&*fd, 1));
    } else {
        command(request, bytes_of(value));
    }
}

std::vector<std::byte> vhost_user_client::get_config(uint32_t offset, uint32_t bytes) {
    vu_config config{};
    config.offset = offset;
    config.size = bytes;
    vu_message reply =
        query(vu_get_config, bytes_of(config).first(offsetof(vu_config, payload) + bytes));
    if (reply.payload.empty()) {
        throw refused("GET_CONFIG was refused");
    }
    if (reply.payload.size() != offsetof(vu_config, payload) + bytes) {
        throw guest_error("GET_CONFIG of " + std::to_string(bytes) + " bytes got a payload of " +
                          std::to_string(reply.payload.size()));
    }
    return {reply.payload.begin() + offsetof(vu_config, payload), reply.payload.end()};
}

void vhost_user_client::set_config(uint32_t offset, std::span<const std::byte> bytes,
                                   uint32_t flags) {
    vu_config config{};
    config.offset = offset;
    config.size = static_cast<uint32_t>(bytes.size());
    config.flags = flags;
    std::memcpy(config.payload, bytes.data(), std::min(bytes.size(), sizeof(config.payload)));
    command(vu_set_config, bytes_of(config).first(offsetof(vu_config, payload) + bytes.size()));
}

vu_inflight vhost_user_client::get_inflight_fd(uint16_t queues, uint16_t queue_size,
                                               unique_fd& fd) {
    vu_message reply =
        query(vu_get_inflight_fd, bytes_of(vu_inflight{0, 0, queues, queue_size, 0}));
    auto area = reply.as<vu_inflight>();
    if (area.bytes == 0 || reply.fds.size() != 1) {
        throw refused("GET_INFLIGHT_FD gave no area");
    }
    fd = std::move(reply.fds.front());
    return area;
}

void vhost_user_client::set_inflight_fd(const vu_inflight& area, int fd) {
    command(vu_set_inflight_fd, bytes_of(area), std::span(&fd, 1));
}

void vhost_user_client::set_status(uint8_t status) {
    command(vu_set_status, bytes_of(uint64_t{status}));
}

uint8_t vhost_user_client::get_status() {
    return static_cast<uint8_t>(query(vu_get_status).as<uint64_t>());
}

void vhost_user_client::set_backend_req_fd() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        throw_errno("socketpair");
    }
    unique_fd theirs(ends[1]);
    backend_channel_ = unique_fd(ends[0]);
    command(vu_set_backend_req_fd, {}, std::span(&ends[1], 1));
}

bool vhost_user_client::wait_config_change(milliseconds timeout) {
    deadline until(timeout);
    try {
        vu_message message = receive_message(backend_channel_.get(), until);
        if (message.header.request != vu_backend_config_change || !message.payload.empty() ||
            (message.header.flags & vu_version_mask) != vu_version) {
            throw guest_error("the back end sent request " +
                              std::to_string(message.header.request) + " on its channel");
        }
        if ((message.header.flags & vu_need_reply) != 0) {
            struct [[gnu::packed]] {
                vu_header header;
                uint64_t result;
            } reply{{message.header.request, vu_version | vu_reply, sizeof(uint64_t)}, 0};
            send_all(backend_channel_.get(), bytes_of(reply), {}, until);
        }
        return true;
    } catch (const timeout_error&) {
        return false;
    }
}

} // namespace vql::guest
