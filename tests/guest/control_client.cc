// SPDX-License-Identifier: GPL-2.0-only
#include "control_client.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sys/socket.h>
#include <sys/un.h>

namespace vql::guest {

control_client::control_client(const std::string& path)
    : socket_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path)) {
        throw guest_error("socket path is too long: " + path);
    }
    std::memcpy(address.sun_path, path.data(), path.size());
    if (connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
        throw_errno("connect to " + path);
    }
    // A daemon that does not read must not stop the test for good.
    timeval limit{default_timeout().count() / 1000, 0};
    setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

void control_client::send_text(std::string_view text) {
    while (!text.empty()) {
        ssize_t sent = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL);
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) {
            throw disconnected("the daemon closed the control connection");
        }
        if (sent < 0) {
            throw_errno("send on the control socket");
        }
        text.remove_prefix(static_cast<size_t>(sent));
    }
}

std::string control_client::receive_line(milliseconds timeout) {
    deadline until(timeout);
    for (;;) {
        size_t end = received_.find('\n');
        if (end != std::string::npos) {
            std::string line = received_.substr(0, end);
            received_.erase(0, end + 1);
            return line;
        }
        if (!wait_readable(socket_.get(), until)) {
            throw timeout_error("no reply on the control socket in time");
        }
        std::array<char, 65536> buffer;
        ssize_t got = recv(socket_.get(), buffer.data(), buffer.size(), 0);
        if (got <= 0) {
            throw disconnected("the daemon closed the control connection");
        }
        received_.append(buffer.data(), static_cast<size_t>(got));
    }
}

void control_client::finish_sending() {
    shutdown(socket_.get(), SHUT_WR);
}

nlohmann::json control_client::call(const nlohmann::json& request) {
    send_text(request.dump() + "\n");
    return nlohmann::json::parse(receive_line());
}

nlohmann::json control_client::result(const nlohmann::json& request) {
    nlohmann::json reply = call(request);
    if (!reply.value("ok", false)) {
        throw guest_error("request " + request.dump() + " failed: " + reply.dump());
    }
    return reply.contains("result") ? reply["result"] : nlohmann::json();
}

std::string control_client::error(const nlohmann::json& request) {
    nlohmann::json reply = call(request);
    if (reply.value("ok", true)) {
        throw guest_error("request " + request.dump() + " should have failed: " + reply.dump());
    }
    return reply.at("error").get<std::string>();
}

} // namespace vql::guest
