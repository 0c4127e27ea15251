//! `requests` for people.

use minisgl_proto::admin::{RequestState, RequestStatus};

use super::{seconds, table};

fn state(state: RequestState) -> &'static str {
    match state {
        RequestState::Waiting => "waiting",
        RequestState::Running => "running",
        RequestState::Parked => "parked",
    }
}

/// The oldest first. Keys and moves have columns where some request has any.
pub fn requests(all: &[RequestStatus]) -> String {
    let mut all: Vec<&RequestStatus> = all.iter().collect();
    all.sort_by(|a, b| b.age_s.total_cmp(&a.age_s));
    let with_keys = all.iter().any(|request| request.key.is_some());
    let with_moves = all.iter().any(|request| request.moves > 0);
    let mut head = vec!["ID", "MODEL", "STATE", "FOR", "PROMPT", "GENERATED", "PRIORITY"];
    head.extend(with_keys.then_some("KEY"));
    head.extend(with_moves.then_some("MOVES"));
    head.push("REQUEST ID");
    let rows = all.iter().map(|request| {
        let mut row = vec![
            request.id.to_string(),
            request.model.clone(),
            state(request.state).to_string(),
            seconds(request.age_s),
            request.prompt_tokens.to_string(),
            format!("{}/{}", request.generated_tokens, request.max_tokens),
            request.priority.to_string(),
        ];
        if with_keys {
            row.push(request.key.clone().unwrap_or_else(|| "-".to_string()));
        }
        if with_moves {
            row.push(request.moves.to_string());
        }
        row.push(request.request_id.clone());
        row
    });
    table(&head, &rows.collect::<Vec<_>>())
}
