//! The terminal: what is drawn when, keys, signals, and giving it back.
//!
//! Owns: the terminal's state. Must never: leave it raw, whatever happens: it is restored when this returns,
//! by error or signal too, and before a panic speaks.

use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures_util::StreamExt;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::draw::{State, draw};
use super::look;
use super::view::{History, Look};
use crate::client::Client;
use crate::error::CtlError;

/// Gives the terminal back.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows frames until the person has seen enough.
pub(super) async fn run(client: &Client, pause: Duration, first: Look) -> Result<(), CtlError> {
    let failed = |error: std::io::Error| CtlError::Failed(format!("the terminal failed: {error}"));
    let mut ends = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
        .map(signal)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let (sender, mut looks) = mpsc::channel(1);
    // A task of its own: keys are heard while the daemon thinks.
    tokio::spawn(keep_looking(client.clone(), pause, sender));

    let mut terminal = ratatui::try_init().map_err(failed)?;
    let restore = Restore;
    let mut events = EventStream::new();
    let (mut history, mut state) = (History::default(), State { live: true, ..State::default() });
    let mut view = history.add(first);
    loop {
        show(&mut terminal, |area, buffer| draw(&view, &state, area, buffer)).map_err(failed)?;
        let ended =
            futures_util::future::select_all(ends.iter_mut().map(|end| Box::pin(end.recv())));
        tokio::select! {
            seen = looks.recv() => match seen {
                Some(Ok(look)) => {
                    view = history.add(look);
                    state.trouble = None;
                }
                Some(Err(error)) => state.trouble = Some(error.to_string()),
                None => return Err(CtlError::Failed("nobody looks any more".to_string())),
            },
            event = events.next() => match event {
                Some(Ok(event)) => match act(&event, &mut state, view.models.len()) {
                    Next::Go => {}
                    Next::Quit => break,
                },
                Some(Err(error)) => return Err(failed(error)),
                None => break,
            },
            _ = ended => break,
        }
    }
    drop(restore);
    Ok(())
}

async fn keep_looking(
    client: Client,
    pause: Duration,
    looks: mpsc::Sender<Result<Look, CtlError>>,
) {
    loop {
        tokio::time::sleep(pause).await;
        if looks.send(look(&client).await).await.is_err() {
            return;
        }
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    draw: impl FnOnce(ratatui::layout::Rect, &mut ratatui::buffer::Buffer),
) -> std::io::Result<()> {
    terminal.draw(|frame| draw(frame.area(), frame.buffer_mut())).map(drop)
}

enum Next {
    Go,
    Quit,
}

/// What an event does.
fn act(event: &Event, state: &mut State, models: usize) -> Next {
    let Event::Key(key) = event else { return Next::Go };
    if key.kind == KeyEventKind::Release {
        return Next::Go;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Quit,
        KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
        KeyCode::Down | KeyCode::Char('j') => {
            state.first = (state.first + 1).min(models.saturating_sub(1));
        }
        KeyCode::Up | KeyCode::Char('k') => state.first = state.first.saturating_sub(1),
        KeyCode::Home => state.first = 0,
        KeyCode::End => state.first = models.saturating_sub(1),
        _ => {}
    }
    Next::Go
}
