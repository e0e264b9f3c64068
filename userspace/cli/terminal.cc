// SPDX-License-Identifier: GPL-2.0-only
#include "cli/terminal.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <poll.h>
#include <string_view>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utility>

namespace vql {

namespace {

volatile sig_atomic_t ended = 0;

void on_signals(void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler; // without SA_RESTART: it ends the wait
    for (const int s : {SIGINT, SIGTERM, SIGHUP})
        sigaction(s, &action, nullptr);
}

} // namespace

bool can_redraw() {
    const char* const term = std::getenv("TERM");
    return ::isatty(STDOUT_FILENO) && term && *term && std::string_view(term) != "dumb";
}

bool may_colour() {
    return can_redraw() && !std::getenv("NO_COLOR");
}

terminal_size size_of_terminal() {
    winsize w{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) < 0 || !w.ws_row || !w.ws_col)
        return {};
    return {w.ws_row, w.ws_col};
}

size_t width_of_output() {
    return ::isatty(STDOUT_FILENO) ? std::max<size_t>(size_of_terminal().columns, 80) : 0;
}

keyboard::keyboard() {
    if (!can_redraw() || !::isatty(STDIN_FILENO) || ::tcgetattr(STDIN_FILENO, &before_) < 0)
        return;
    termios raw = before_;
    raw.c_lflag &= ~tcflag_t(ICANON | ECHO);
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 0;
    if (::tcsetattr(STDIN_FILENO, TCSANOW, &raw) < 0)
        return; // of another session: then without keys
    active_ = true;
    on_signals([](int) { ended = 1; });
    struct sigaction resized {};
    resized.sa_handler = [](int) {}; // it only ends the wait
    sigaction(SIGWINCH, &resized, nullptr);
    std::fputs("\033[?25l", stdout);
    std::fflush(stdout);
}

keyboard::~keyboard() {
    if (!active_)
        return;
    std::fputs("\033[?25h", stdout);
    std::fflush(stdout);
    ::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
    on_signals(SIG_DFL);
}

int keyboard::next(std::chrono::milliseconds patience) {
    pollfd in{active_ ? STDIN_FILENO : -1, POLLIN, 0};
    const int n = typed_.empty() ? ::poll(&in, 1, static_cast<int>(patience.count())) : 0;
    if (ended)
        return quit;
    if (n > 0) {
        char c[64] = {};
        const ssize_t got = ::read(STDIN_FILENO, c, sizeof(c));
        if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN))
            return quit; // the terminal is gone
        if (got > 0)
            typed_.append(c, size_t(got));
    }
    return first_typed();
}

// A key is a byte, or a sequence: ESC [ A, or ESC [ 5 ~. What begins with ESC and is none of ours
// is no key, to its end.
int keyboard::first_typed() {
    static constexpr std::pair<std::string_view, key> sequences[] = {
        {"\033[A", up},       {"\033OA", up},         {"\033[B", down}, {"\033OB", down},
        {"\033[5~", page_up}, {"\033[6~", page_down}, {"\033[H", home}, {"\033[1~", home},
        {"\033[F", end},      {"\033[4~", end},
    };
    if (typed_.empty())
        return none;
    for (const auto& [bytes, is] : sequences) {
        if (typed_.starts_with(bytes)) {
            typed_.erase(0, bytes.size());
            return is;
        }
    }
    const int first = static_cast<unsigned char>(typed_[0]);
    if (first == '\033') {
        typed_.clear();
        return none;
    }
    typed_.erase(0, 1);
    return first;
}

} // namespace vql
