// SPDX-License-Identifier: GPL-2.0-only
#include "cli/client.h"

#include "cli/table.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <poll.h>
#include <string_view>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <utility>

#include <nlohmann/json.hpp>

namespace vql {

namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using clock = std::chrono::steady_clock;

constexpr size_t max_answer_bytes = 64 << 20;

// What process @pid does, from the third field of /proc/PID/stat; 0: it is gone.
char process_state(pid_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    std::string text;
    std::getline(file, text);
    const size_t name_ends = text.rfind(") "); // a name may hold anything
    return name_ends == text.npos || name_ends + 2 >= text.size() ? '\0' : text[name_ends + 2];
}

// Tell the operator what the daemon waits for, if that is what @line is about, once.
bool is_progress(const std::string& line) {
    static std::string told;
    const json said = json::parse(line, nullptr, false);
    if (!said.is_object() || !said.contains("waiting") || !said["waiting"].is_string())
        return false;
    auto text = said["waiting"].get<std::string>();
    text.resize(std::min(text.size(), text.rfind(" for "))); // "… for 12 s": each second another
    if (!text.empty() && std::exchange(told, text) != text)
        std::fprintf(stderr, "vqlane: waiting: %s\n", text.c_str());
    return true;
}

// connect(2) and send(2) fail with EAGAIN after @timeout.
void limit_sending(int fd, milliseconds timeout) {
    timeval t{};
    t.tv_sec = timeout.count() / 1000;
    t.tv_usec = timeout.count() % 1000 * 1000;
    // Cannot fail for a socket of ours; without it we would only wait longer.
    (void)::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
}

std::string hint(int err) {
    switch (err) {
    case ENOENT:
    case ECONNREFUSED: return " (is vqlaned running?)";
    case EACCES:
    case EPERM: return " (this command needs the rights of the daemon's user, mostly root)";
    case EAGAIN: return " (the daemon accepts no connections)";
    default: return "";
    }
}

} // namespace

result<client> client::connect(const std::string& path, milliseconds patience) {
    const std::string context = "cannot reach the daemon at " + path;
    sockaddr_un address{};

    if (path.empty() || path.size() >= sizeof(address.sun_path))
        return error{context + ": a socket's path has 1 to " +
                     std::to_string(sizeof(address.sun_path) - 1) + " bytes"};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, path.size());

    unique_fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd)
        return errno_error(context, errno);
    limit_sending(fd.get(), patience);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0) {
        const int err = errno;
        return error{errno_error(context, err).text + hint(err)};
    }
    return client(path, patience, std::move(fd));
}

// Why nothing comes of it.
error client::silent() const {
    const std::string pid = std::to_string(peer());
    const std::string daemon = "the daemon at " + path_ + " (process " + pid + ") ";
    switch (process_state(peer())) {
    case 'T':
    case 't': return {daemon + "is stopped: it goes on after: kill -CONT " + pid};
    case 'D': return {daemon + "does not answer: it waits in the kernel"};
    default:
        return {daemon + "did not answer within " +
                human_duration(static_cast<uint64_t>(patience_.count()) * 1000000)};
    }
}

// A daemon that is at work on our request has others answered at once.
bool client::answers_others() const {
    auto other = connect(path_, patience_ / 2);
    return other && other->exchange("{\"op\":\"version\"}\n", false);
}

// One line there, one line back; before it there may be lines, one a second, that say what the
// daemon waits for. While none comes, and @wait, the daemon is asked something else
// after half of our patience, which leaves the other half for the answer to that.
result<std::string> client::exchange(const std::string& request, bool wait) {
    const std::string daemon = "the daemon at " + path_;
    clock::time_point deadline = clock::now() + (wait ? patience_ / 2 : patience_);
    std::string answer;
    char part[65536];

    for (size_t sent = 0; sent < request.size();) {
        const ssize_t n =
            ::send(fd_.get(), request.data() + sent, request.size() - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? silent() : errno_error(daemon + " takes no request", errno);
        sent += static_cast<size_t>(n);
    }
    while (answer.size() <= max_answer_bytes) {
        const auto left = std::chrono::ceil<milliseconds>(deadline - clock::now());
        pollfd ready{fd_.get(), POLLIN, 0};
        if (left.count() <= 0) {
            if (!wait || !answers_others())
                return silent();
            deadline = clock::now() + patience_;
            continue;
        }
        const int polled = ::poll(&ready, 1, static_cast<int>(left.count()));
        if (polled == 0 || (polled < 0 && errno == EINTR))
            continue;
        const ssize_t n = ::recv(fd_.get(), part, sizeof(part), MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return errno_error(daemon + " is lost", errno);
        if (n == 0)
            return error{daemon + " closed the connection without an answer"};
        answer.append(part, static_cast<size_t>(n));
        for (size_t end; (end = answer.find('\n')) != answer.npos; answer.erase(0, end + 1)) {
            std::string whole = answer.substr(0, end);
            if (!is_progress(whole))
                return whole;
            deadline = clock::now() + patience_;
        }
    }
    return error{daemon + " sent an answer without an end"};
}

pid_t client::peer() const {
    ucred who{};
    socklen_t bytes = sizeof(who);
    // Cannot fail for a connected socket of this family.
    (void)::getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &who, &bytes);
    return who.pid;
}

result<json> client::call(const json& request) {
    const std::string text = request.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    auto line = exchange(text, true);
    if (!line)
        return line.failure();

    json answer = json::parse(*line, nullptr, false);
    const json ok = answer.is_object() ? answer.value("ok", json()) : json();
    if (ok == true && answer.contains("result"))
        return std::move(answer["result"]);
    if (ok == false && answer["error"].is_string())
        return error{answer["error"].get<std::string>()};
    return error{"the daemon at " + path_ +
                 " sent something that is no answer (are vqlane and vqlaned of one version?)"};
}

} // namespace vql
