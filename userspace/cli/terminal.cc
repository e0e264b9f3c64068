// SPDX-License-Identifier: GPL-2.0-only
#include "cli/terminal.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <poll.h>
#include <string_view>
#include <sys/ioctl.h>
#include <unistd.h>

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
    const int n = ::poll(&in, 1, static_cast<int>(patience.count()));
    if (ended)
        return quit;
    if (n <= 0)
        return none;
    return read_key();
}

// A key is a byte, or a sequence: ESC [ A, or ESC [ 5 ~. What is none of ours is no key.
int keyboard::read_key() {
    char c[8] = {};
    const ssize_t n = ::read(STDIN_FILENO, c, sizeof(c));
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
        return quit; // the terminal is gone
    if (n < 0)
        return none;
    const std::string_view bytes(c, size_t(n));
    if (bytes == "\033[A" || bytes == "\033OA")
        return up;
    if (bytes == "\033[B" || bytes == "\033OB")
        return down;
    if (bytes == "\033[5~")
        return page_up;
    if (bytes == "\033[6~")
        return page_down;
    if (bytes == "\033[H" || bytes == "\033[1~")
        return home;
    if (bytes == "\033[F" || bytes == "\033[4~")
        return end;
    return bytes[0] == '\033' ? int{none} : static_cast<unsigned char>(bytes[0]);
}

} // namespace vql
